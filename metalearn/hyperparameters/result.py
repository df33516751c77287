"""What a run leaves behind: the hyper-parameters it found, and how networks train under them."""

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from metalearn.hyperparameters.gain import Gain
from metalearn.hyperparameters.space import Space
from metalearn.task import Split
from metalearn.tree import Tree, detach


def write_result(folder: Path, space: Space, gain: Gain, found: Tree, label: str) -> None:
    """`hyperparameters.json`, `curves.json`, and `learning_rates.json` where rates depend on the step."""
    found = detach(found)
    record = {"learning_rates": _rates(space, found), "penalties": _penalties(found)}
    (folder / "hyperparameters.json").write_text(json.dumps(record, indent=1) + "\n")
    split: Split = "test" if "test" in gain.learned else "valid"
    if split not in gain.learned:
        gain.measure(split, found)
    curves = {"starting": gain.starting[split].curve, label: gain.learned[split].curve}
    _write_curves(folder / "curves.json", curves, "mean training loss")
    if space.by_step:
        rates = dict(zip(space.groups, found["log_rate"].exp().unbind(1), strict=True))
        _write_curves(folder / "learning_rates.json", rates, "learning rate")


def _rates(space: Space, found: Tree) -> dict[str, Any]:
    """By group: one rate, or one a step."""
    if "log_rate" not in found:
        return dict.fromkeys(space.groups, space.options.learning_rate)
    columns = found["log_rate"].exp().T.tolist()
    return {
        group: column if space.by_step else column[0]
        for group, column in zip(space.groups, columns, strict=True)
    }


def _penalties(found: Tree) -> dict[str, dict[str, float]]:
    """By name: how many there are, their geometric mean, the least and the greatest."""
    logs = {key.partition("/")[2]: leaf for key, leaf in found.items() if key.startswith("log_penalty/")}
    return {
        name: {
            "count": leaf.numel(),
            "geometric_mean": leaf.mean().exp().item(),
            "least": leaf.min().exp().item(),
            "greatest": leaf.max().exp().item(),
        }
        for name, leaf in logs.items()
    }


def _write_curves(path: Path, curves: dict[str, Tensor], label: str) -> None:
    """A series for each name, over steps; null where a value is not finite."""
    series = {
        name: [value if math.isfinite(value) else None for value in curve.tolist()]
        for name, curve in curves.items()
    }
    length = len(next(iter(series.values())))
    content = {"x": list(range(length)), "x_label": "step", "y_label": label, "series": series}
    path.write_text(json.dumps(content, indent=1) + "\n")
