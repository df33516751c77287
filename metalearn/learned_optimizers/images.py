"""What optimizers make of images: the start, the middle and the end of runs, side by side."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.optimizees import Optimizee
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.problem import Inner
from metalearn.task import Imaged, Split
from metalearn.tree import Tree

SHOWN = 3  # problems
INCHES = 1.35  # a picture's side
Images = Float[Tensor, "problem 3 height width"]


def write_images(
    folder: Path, rules: Mapping[str, tuple[UpdateRule, Tree]], optimizee: Optimizee, split: Split
) -> None:
    """`images.svg` of the first problems of a split, if the task's points are images; else nothing.

    Of the first rule the middle and the end of its runs, of the others the end.
    """
    if not isinstance(optimizee.task, Imaged):
        return
    middle = optimizee.options.horizon // 2
    columns: dict[str, Images] = {}
    for name, (rule, meta) in rules.items():
        seen = trajectory(rule, meta, optimizee, split)
        if not columns:
            columns = {"start": seen[0], f"{name}, step {middle}": seen[middle]}
        columns[f"{name}, step {len(seen) - 1}"] = seen[-1]
    _draw(columns, folder / "images.svg")


@torch.no_grad()
def trajectory(rule: UpdateRule, meta: Tree, optimizee: Optimizee, split: Split) -> list[Images]:
    """The images of the first problems before every step and after the last."""
    assert isinstance(optimizee.task, Imaged)
    theta, feed = optimizee.start(split, range(SHOWN)), optimizee.batches(split, range(SHOWN), 0, 1)
    inner, seen = Inner({"theta": theta}, rule.slots(theta, optimizee.layout)), []
    for _ in range(optimizee.options.horizon):
        seen.append(optimizee.task.images(inner.params["theta"], feed[0])[:SHOWN])
        with torch.enable_grad():
            _, grads = optimizee.losses_and_gradients(inner.params["theta"], feed[0])
        inner = rule.update(meta, inner, {"theta": grads}, optimizee.layout)
    return [*seen, optimizee.task.images(inner.params["theta"], feed[0])[:SHOWN]]


def _draw(columns: dict[str, Images], path: Path) -> None:
    """A row for each problem. What is not finite is black."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = len(next(iter(columns.values())))
    style: dict[Any, Any] = {"svg.hashsalt": "metalearn", "svg.fonttype": "none", "font.size": 8}
    with mpl.rc_context(style):
        size = (INCHES * len(columns), INCHES * rows + 0.35)
        canvas = Figure(figsize=size, layout="constrained")
        panels = canvas.subplots(rows, len(columns), squeeze=False)
        for column, (title, images) in enumerate(columns.items()):
            panels[0, column].set_title(title.replace(", ", "\n"), fontsize=8)
            for axes, image in zip(panels[:, column], images.nan_to_num(0.0).cpu(), strict=True):
                axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest", vmin=0, vmax=1)
                axes.set_axis_off()
        canvas.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
