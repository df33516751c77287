"""A run as its checkpoint left it."""

from pathlib import Path

from omegaconf import OmegaConf

from metalearn.build import Parts, build
from metalearn.config import Config, resolve
from metalearn.registry import UserError
from metalearn.train.checkpoint import Restored, read_best, read_newest


def restore(run: Path, purpose: str) -> Parts:
    """Rebuild a run from its best checkpoint if it selects that one, else from the newest.

    One that was trained on CUDA is rebuilt on the CPU where there is no CUDA. Raises UserError; `purpose`
    ends "has no checkpoint to ...".
    """
    if not (run / "run.yaml").exists():
        raise UserError(f"{run}: is no run directory (it has no run.yaml); metalearn list runs shows them")
    config = resolve(OmegaConf.load(run / "run.yaml"))  # type: ignore[arg-type]
    if config.machine.device == "cuda":
        config.machine.device = "auto"
    found = _checkpoint(run, config, purpose)
    parts = build(config)
    parts.method.load_state_dict(found.state["method"])
    return parts


def _checkpoint(run: Path, config: Config, purpose: str) -> Restored:
    folder = run / "checkpoints"
    newest = read_newest(folder)
    if newest is None:
        raise UserError(
            f"{run}: has no checkpoint to {purpose}; let it run until train.checkpoint_every steps"
        )
    best = newest.state["best"]
    chosen = read_best(folder, best["step"]) if config.train.select == "best" and best else newest
    return chosen or newest
