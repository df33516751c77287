"""`metalearn export`: what a run found, in files that need none of its training code."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from metalearn.network import Network
from metalearn.restore import restore
from metalearn.supervised import Supervised
from metalearn.task import Task
from metalearn.tree import Tree

BATCH = torch.export.Dim("batch", min=1)


def export(run: Path, folder: Path) -> list[Path]:
    """Rebuild a run from its checkpoint and write what it found into `folder`; the files written.

    The method's artifacts (genotype, pictures, weights by safetensors, learned optimizer) and, for a trained
    classifier or language model, the network by `torch.export`, batch size free, with an example that loads
    and checks it without metalearn: `network.pt2`, `example.safetensors`, `example.py`.
    Takes the best checkpoint if the run selects it, else the newest. Raises UserError.
    """
    parts = restore(run, "export")
    folder.mkdir(parents=True, exist_ok=True)
    parts.method.artifacts(folder)
    if isinstance(parts.method, Supervised):
        write = _write_classifier if parts.task.spec.kind == "classification" else _write_reader
        with parts.method.averaging.averaged():
            network = parts.method.network.cpu().eval()
            network.fused = False
            write(network, parts.task, folder)
    return sorted(path for path in folder.iterdir() if path.is_file())


class _Logits(nn.Module):
    """A network as a function from inputs to logits."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).logits


class _Step(nn.Module):
    """A language model as a function from a symbol and a state to the next one's logits and state."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, state: Tree) -> tuple[Tensor, Tree]:
        output = self.network(x[:, None], state)
        return output.logits[:, 0], output.state


@torch.no_grad()
def _write_classifier(network: Network, task: Task, folder: Path) -> None:
    x = next(iter(task.sweep("test"))).x[:2].cpu()
    program = torch.export.export(_Logits(network), (x,), dynamic_shapes=({0: BATCH},))
    torch.export.save(program, folder / "network.pt2")
    save_file({"x": x.contiguous(), "logits": network(x).logits}, folder / "example.safetensors")
    (folder / "example.py").write_text(CLASSIFIER, encoding="utf-8")


@torch.no_grad()
def _write_reader(network: Network, task: Task, folder: Path) -> None:
    """The example starts from the state after one symbol: the program has no start of its own."""
    x = next(iter(task.sweep("test"))).x[:2, :9].cpu()
    state = network(x[:, :1]).state
    batch = {key: {leaf.shape.index(2): BATCH} for key, leaf in state.items()}
    step = (x[:, 1].contiguous(), state)
    program = torch.export.export(_Step(network), step, dynamic_shapes=({0: BATCH}, batch))
    torch.export.save(program, folder / "network.pt2")
    example = {"x": x[:, 1:], "logits": network(x[:, 1:], state).logits}
    example |= {f"state.{key}": leaf for key, leaf in state.items()}
    save_file({key: leaf.contiguous() for key, leaf in example.items()}, folder / "example.safetensors")
    (folder / "example.py").write_text(READER, encoding="utf-8")


CLASSIFIER = '''"""Scores inputs with the exported network: needs torch and safetensors alone."""

import torch
from safetensors.torch import load_file

network, example = torch.export.load("network.pt2").module(), load_file("example.safetensors")
weights = load_file("weights.safetensors")  # the program holds the same; so others of this shape go in
network.load_state_dict({f"network.{name}": leaf for name, leaf in weights.items()}, strict=False)
logits = network(example["x"])
print("classes:", logits.argmax(dim=1).tolist())
print("largest difference from the run's logits:", (logits - example["logits"]).abs().max().item())
'''
READER = '''"""Reads symbols with the exported network: needs torch and safetensors alone."""

import torch
from safetensors.torch import load_file

network, example = torch.export.load("network.pt2").module(), load_file("example.safetensors")
state = {name[6:]: leaf for name, leaf in example.items() if name.startswith("state.")}
for time in range(example["x"].shape[1]):
    logits, state = network(example["x"][:, time], state)
    print("most likely next symbols:", logits.argmax(dim=1).tolist())
print("largest difference from the run's logits:", (logits - example["logits"][:, -1]).abs().max().item())
'''
