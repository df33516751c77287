"""`metalearn export`: what a run found, in files that need none of its training code."""

from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from metalearn.build import Parts, build
from metalearn.config import Config, resolve
from metalearn.network import Network
from metalearn.registry import UserError
from metalearn.supervised import Supervised
from metalearn.train.checkpoint import Restored, read_best, read_newest


def export(run: Path, folder: Path) -> list[Path]:
    """Rebuild a run from its checkpoint and write what it found into `folder`; the files written.

    The method's artifacts (genotype, pictures, weights by safetensors, learned optimizer) and, for a trained
    image classifier, `network.pt2`: the network by `torch.export`, batch size free, logits alone.
    Takes the best checkpoint if the run selects it, else the newest. Raises UserError.
    """
    if not (run / "run.yaml").exists():
        raise UserError(f"{run}: is no run directory (it has no run.yaml); metalearn list runs shows them")
    config = resolve(OmegaConf.load(run / "run.yaml"))  # type: ignore[arg-type]
    restored = _restored(run, config)
    parts = build(config)
    parts.method.load_state_dict(restored.state["method"])
    folder.mkdir(parents=True, exist_ok=True)
    parts.method.artifacts(folder)
    if isinstance(parts.method, Supervised) and parts.task.spec.kind == "classification":
        _program(parts.method.network, parts, folder / "network.pt2")
    return sorted(path for path in folder.iterdir() if path.is_file())


def _restored(run: Path, config: Config) -> Restored:
    folder = run / "checkpoints"
    newest = read_newest(folder)
    if newest is None:
        raise UserError(f"{run}: has no checkpoint to export; let it run until train.checkpoint_every steps")
    best = newest.state["best"]
    chosen = read_best(folder, best["step"]) if config.train.select == "best" and best else newest
    return chosen or newest


class _Logits(nn.Module):
    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).logits


def _program(network: Network, parts: Parts, path: Path) -> None:
    example = next(iter(parts.task.sweep("test"))).x[:2]
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(_Logits(network).eval(), (example,), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
