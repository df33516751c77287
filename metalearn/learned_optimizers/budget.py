"""What a trained optimizer has cost, read from its run directory."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf


def of_meta_training(path: str) -> dict[str, Any] | None:
    """Steps of one problem in all, and seconds; None for what is no run directory of meta-training.

    Particles of an estimator that compares values count as one: its `step` is one unroll all the same.
    """
    folder = Path(path).expanduser()
    if not (folder / "run.yaml").exists():
        return None
    config, status = OmegaConf.load(folder / "run.yaml"), json.loads((folder / "status.json").read_text())
    method = OmegaConf.select(config, "method")
    if method is None or method.get("name") != "learned_optimizer":
        return None
    each = method.unroll * method.problems * method.groups
    return {"optimizee_steps": status["step"] * each, "seconds": _seconds(folder / "timing.jsonl")}


def _seconds(timing: Path) -> float | None:
    """The time of training and evaluation, from the last whole row."""
    for line in reversed(timing.read_text().splitlines() if timing.exists() else []):
        try:
            return json.loads(line)["seconds"]
        except (ValueError, KeyError):
            continue  # a torn line
    return None
