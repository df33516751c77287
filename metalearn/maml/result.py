"""What a run leaves behind: the initialisation, how tasks adapt from it, and for functions of x a picture."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from metalearn.maml import one_by_one
from metalearn.maml.config import MamlOptions
from metalearn.maml.problem import FewShot
from metalearn.task import Batch, Metrics, TaskSpec
from metalearn.tree import Tree, detach

CONFIDENCE = 0.95
POINTS = 200  # of a drawn curve
TITLES = {"maml": "MAML", "fomaml": "FOMAML", "anil": "ANIL", "meta_sgd": "Meta-SGD", "reptile": "Reptile"}


def summary(split: str, scores: Metrics) -> Metrics:
    """`split/quantity` after adaptation, `_before` it, and half its 95 % t-interval over tasks (`_interval`).

    `scores` are [task steps+1]; a single task has no interval.
    """
    metrics = {}
    for quantity, values in scores.items():
        metrics[f"{split}/{quantity}"] = values[:, -1].mean()
        metrics[f"{split}/{quantity}_before"] = values[:, 0].mean()
        if len(values) > 1:
            metrics[f"{split}/{quantity}_interval"] = _half_width(values[:, -1])
    return metrics


def _half_width(values: Float[Tensor, " task"]) -> Float[Tensor, ""]:
    from scipy.special import stdtrit  # lighter to import than scipy.stats

    quantile = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2))
    return quantile * values.std() / math.sqrt(len(values))


def title(options: MamlOptions) -> str:
    """What curves of this run are called."""
    if options.inner_steps == 0:
        return "joint training"
    name = TITLES.get(options.algorithm, "iMAML")
    return f"learn2learn's {name}" if options.backend == "learn2learn" else name


def write_weights(folder: Path, meta: Tree) -> None:
    """`initialisation.safetensors` by the network's own names; Meta-SGD's rates in `rates.safetensors`."""
    parts: dict[str, Tree] = {"init": {}, "rate": {}}
    for key, leaf in detach(meta).items():
        kind, _, name = key.partition("/")
        parts[kind][name] = leaf.cpu().contiguous()
    save_file(parts["init"], folder / "initialisation.safetensors")
    if parts["rate"]:
        save_file(parts["rate"], folder / "rates.safetensors")


def write_curve(folder: Path, name: str, metric: str, values: Float[Tensor, "task place"]) -> None:
    """`adaptation.json`: the mean over tasks after 0, 1, ... inner steps."""
    curve = values.mean(dim=0).tolist()
    finite = [value if math.isfinite(value) else None for value in curve]
    labels = {"x_label": "inner steps", "y_label": f"{metric} of the queries"}
    content = {"x": list(range(len(curve))), **labels, "series": {name: finite}}
    (folder / "adaptation.json").write_text(json.dumps(content, indent=1) + "\n")


def drawable(spec: TaskSpec) -> bool:
    """Whether tasks are functions of one number."""
    return tuple(spec.input_shape) == (1,) and spec.outputs == 1


def write_picture(
    path: Path, problem: FewShot, meta: Tree, support: Batch, query: Batch, steps: Sequence[int]
) -> None:
    """One task's function before and after `steps` inner steps (.svg); the same state gives the same bytes.

    Batches are [example 1] of one task.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ends = torch.stack([support.x.min(), support.x.max(), query.x.min(), query.x.max()])
    low, high = ends.min(), ends.max()
    x = (low + (high - low) * torch.linspace(0, 1, POINTS).to(ends)).unsqueeze(1)
    places = list(one_by_one.trail(problem, meta, support, max(steps)))
    with mpl.rc_context({"svg.hashsalt": "metalearn", "svg.fonttype": "path"}):
        figure = Figure(figsize=(6, 3.6), layout="constrained")
        axes = figure.add_subplot(xlabel="x", ylabel="y")
        for step in sorted({0, *steps}):
            with torch.no_grad():
                y = problem.score(meta, places[step], Batch(x, x, support.key))
            axes.plot(_numbers(x), _numbers(y), label=f"after {step} steps" if step != 1 else "after 1 step")
        axes.plot(_numbers(query.x), _numbers(query.y), "o", mfc="none", color="0.5", label="query")
        axes.plot(_numbers(support.x), _numbers(support.y), "k^", label="support")
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _numbers(tensor: Tensor) -> Any:
    return tensor.detach().flatten().tolist()
