"""Trained optimizers on disk: meta-parameters in `optimizer.safetensors`, their rule in `optimizer.json`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from metalearn.config import MachineOptions, typed
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.machine import Machine
from metalearn.registry import UserError, build, entry
from metalearn.rng import generator
from metalearn.tree import Tree, detach

FORMAT = 1  # of optimizer.json
WEIGHTS, RECORD, CARD = "optimizer.safetensors", "optimizer.json", "card.md"
PRETRAINED = "pretrained"  # the word for the optimizer that comes with this package
SHIPPED = Path(__file__).with_name("pretrained")
FOLDERS = (".", "artifacts", "export")  # where a run's optimizer may lie
GUEST = MachineOptions(
    "guest", "cpu", "fp32", compile=False, fused=True, deterministic=False, threads=0, timeout=60
)


def save(folder: Path, rule: UpdateRule, meta: Tree, record: Mapping[str, Any]) -> None:
    """Write the two files; `record` says where the optimizer comes from."""
    folder.mkdir(parents=True, exist_ok=True)
    leaves = {key: leaf.cpu().contiguous() for key, leaf in detach(meta).items()}
    save_file(leaves, folder / WEIGHTS)
    whole = {"format": FORMAT, "rule": dataclasses.asdict(rule.options), **record}
    (folder / RECORD).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def load(path: str | Path, machine: Machine | None = None) -> tuple[UpdateRule, Tree]:
    """A trained rule and its meta-parameters, on the machine's device.

    `path` is a run directory of `learned_optimizer`, its `artifacts/`, an export, any folder with the two
    files, or the word "pretrained". Without a machine: on the CPU, torch's settings left as they are.
    Raises UserError.
    """
    machine = Machine(GUEST, guest=True) if machine is None else machine
    folder = find(path)
    rule = _rule(folder / RECORD, machine)
    meta = _weights(folder / WEIGHTS)
    _fit(folder / WEIGHTS, rule, meta)
    return rule, {key: machine.put(leaf) for key, leaf in meta.items()}


def find(path: str | Path) -> Path:
    """The folder with the two files that `path` means. Raises UserError."""
    if path == PRETRAINED:
        return _shipped()
    path = Path(path).expanduser()
    if path.name in (WEIGHTS, RECORD):
        path = path.parent
    if not path.is_dir():
        raise UserError(
            f"{path}: there is no such folder; give a run directory of learned_optimizer, an export of one, "
            f'or "{PRETRAINED}" (metalearn list runs shows the runs)'
        )
    for name in FOLDERS:
        if (path / name / RECORD).exists() or (path / name / WEIGHTS).exists():
            return path / name
    raise UserError(_without(path))


def origin(path: str | Path) -> dict[str, Any]:
    """What optimizer.json says: rule, task, seed, steps of meta-training. Raises UserError."""
    return _record(find(path) / RECORD)


def _shipped() -> Path:
    if not (SHIPPED / RECORD).exists():
        raise UserError(
            "pretrained: this copy of metalearn comes without a trained optimizer; give the path of a run "
            "of learned_optimizer, or install a release"
        )
    return SHIPPED


def _without(path: Path) -> str:
    """Why a folder holds no optimizer, and what to do."""
    if not (path / "run.yaml").exists():
        return (
            f"{path}: holds neither {RECORD} nor a run (run.yaml); give a run directory or an export of one"
        )
    method = _method(path / "run.yaml")
    if method != "learned_optimizer":
        return f"{path}: is a run of {method}, which trains no optimizer; give one of learned_optimizer"
    return (
        f"{path}: this run has not written its optimizer yet; let it finish, or take it out of the newest "
        f"checkpoint: metalearn export {path}"
    )


def _method(path: Path) -> str:
    try:
        return str(OmegaConf.select(OmegaConf.load(path), "method.name"))  # type: ignore[arg-type]
    except (OmegaConfBaseException, OSError, ValueError):
        return "something unreadable"


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({_reason(error)}); {WEIGHTS} and {RECORD} belong together: "
            "take both from the run once more (metalearn export RUN)"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("rule"), dict):
        raise UserError(f"{path}: does not describe a learned optimizer (it has no `rule`)")
    if record.get("format") != FORMAT:
        raise UserError(
            f"{path}: format {record.get('format')}; this metalearn reads format {FORMAT}: export the run "
            "again with this version, or use the version that wrote it"
        )
    return record


def _rule(path: Path, machine: Machine) -> UpdateRule:
    values = _record(path)["rule"]
    try:
        options = typed(entry("rule", str(values.get("name"))).options, values, "rule.")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return build("rule", options, machine=machine)


def _weights(path: Path) -> Tree:
    try:
        # copied: the file's tensors are not aligned in memory, and then products differ in their last bits
        return {key: leaf.clone() for key, leaf in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be read ({_reason(error)}); copy it anew, or take it from the run once more "
            "(metalearn export RUN)"
        ) from error


def _fit(path: Path, rule: UpdateRule, meta: Tree) -> None:
    """Refuse weights that are not the rule's."""
    wanted = {key: list(leaf.shape) for key, leaf in rule.init(generator(0)).items()}
    found = {key: list(leaf.shape) for key, leaf in meta.items()}
    wrong = [
        f"{key} is {found.get(key, 'missing')} (wanted: {wanted.get(key, 'none of this name')})"
        for key in sorted(wanted | found)
        if wanted.get(key) != found.get(key)
    ]
    if wrong:
        raise UserError(
            f"{path}: is of another rule than {RECORD} beside it says ({rule.options.name}): "
            f"{'; '.join(wrong[:4])}{'; ...' if len(wrong) > 4 else ''}"
        )
    lost = [key for key, leaf in meta.items() if not leaf.isfinite().all()]
    if lost:
        raise UserError(
            f"{path}: {', '.join(lost[:4])} has numbers that are not finite: its training diverged; take "
            "another run, or train with a lower method.learning_rate or with method.clip"
        )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
