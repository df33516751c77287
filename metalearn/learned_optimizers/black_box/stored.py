"""A trained black-box optimizer on disk."""

import dataclasses
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from metalearn.learned_optimizers.black_box.config import BlackBoxOptimizerOptions
from metalearn.registry import UserError
from metalearn.tree import Tree, detach

WEIGHTS, RECORD, FORMAT = "black_box_optimizer.safetensors", "black_box_optimizer.json", 1
SHAPE = ("controller", "hidden", "forget_bias", "slots", "width", "read_heads", "squash")


def write(folder: Path, meta: Tree, options: BlackBoxOptimizerOptions, dimension: int, task: str) -> None:
    """`black_box_optimizer.safetensors`, and `.json` with the options it was trained by."""
    save_file({key: leaf.cpu() for key, leaf in detach(meta).items()}, folder / WEIGHTS)
    record = {
        "format": FORMAT,
        "dimension": dimension,
        "task": task,
        "method": dataclasses.asdict(options),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def read(path: str, options: BlackBoxOptimizerOptions, dimension: int) -> Tree:
    """The weights of a run directory, its artifacts or a folder of both files, on the CPU.

    Raises UserError where there are none, or they are of a network that `options` do not describe.
    """
    places = [folder for folder in (Path(path) / "artifacts", Path(path)) if (folder / RECORD).exists()]
    if not places or not (places[0] / WEIGHTS).exists():
        raise UserError(
            f"method.optimizer: {path} has no {RECORD} with {WEIGHTS}; give the directory of a finished run "
            "of method=black_box_optimizer"
        )
    record = json.loads((places[0] / RECORD).read_text())
    if record.get("format") != FORMAT:
        raise UserError(f"{places[0] / RECORD}: got format {record.get('format')}, must be {FORMAT}")
    if record["dimension"] != dimension:
        raise UserError(
            f"method.optimizer: {path} is of {record['dimension']} dimensions, the task has {dimension}; "
            "there is a network for each number of dimensions: choose a task of that one"
        )
    _refuse_other(path, record["method"], options)
    return load_file(places[0] / WEIGHTS)


def _refuse_other(path: str, stored: dict[str, object], options: BlackBoxOptimizerOptions) -> None:
    alike = SHAPE if options.controller == "dnc" else tuple(set(SHAPE) - {"slots", "width", "read_heads"})
    mine = {name: getattr(options, name) for name in alike} | {"workers": options.workers > 1}
    theirs = {name: stored[name] for name in alike} | {"workers": int(str(stored["workers"])) > 1}
    wrong = sorted(name for name in mine if mine[name] != theirs[name])
    if wrong:
        lines = " ".join(f"method.{name}={stored[name]}" for name in wrong)
        raise UserError(f"method.optimizer: {path} is another network than this run's; set {lines}")
