"""`metalearn export`: what a run found, in files that need none of its training code."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim

from metalearn.export_translator import write_translator
from metalearn.learned_optimizers.meta_train import MetaTraining
from metalearn.network import Network
from metalearn.restore import restore
from metalearn.supervised import Supervised
from metalearn.task import Split, Task
from metalearn.train.files import read_json
from metalearn.train.run_directory import PROVENANCE
from metalearn.tree import Tree

BATCH = Dim("batch", min=1)


def export(run: Path, folder: Path) -> list[Path]:
    """Rebuild a run from its checkpoint and write what it found into `folder`; the files written.

    The method's artifacts (genotype, pictures, weights by safetensors) and, for a trained classifier,
    language model or writer of handwriting, the network by `torch.export`, batch size free, with an example
    that loads and checks it without metalearn: `network.pt2`, `example.safetensors`, `example.py`. A
    translator is two programs, `encoder.pt2` and `decoder.pt2`. Of a learned optimizer only what it takes
    to use it: `optimizer.safetensors`, `optimizer.json`, `example.py`.
    Takes the best checkpoint if the run selects it, else the newest. Raises UserError.
    """
    parts = restore(run, "export")
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(parts.method, MetaTraining):
        git = read_json(run / PROVENANCE).get("git") or {}
        parts.method.save(folder, commit=git.get("commit"))
        (folder / "example.py").write_text(OPTIMIZER, encoding="utf-8")
    else:
        parts.method.artifacts(folder)
    write = WRITERS.get(parts.task.spec.kind)
    if isinstance(parts.method, Supervised) and write:
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
    """A network that reads in time, as a function from one input and a state to its logits and state."""

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
    """The example starts from the state after one input: the program has no start of its own."""
    split, shown = READERS[task.spec.kind]
    x = next(iter(task.sweep(split))).x[:2, :9].cpu()
    state = network(x[:, :1]).state
    step = (x[:, 1].contiguous(), state)
    shapes = ({0: BATCH}, _batch_dimensions(network, x[:, :1], state))
    torch.export.save(
        torch.export.export(_Step(network), step, dynamic_shapes=shapes), folder / "network.pt2"
    )
    example = {"x": x[:, 1:], "logits": network(x[:, 1:], state).logits}
    example |= {f"state.{key}": leaf for key, leaf in state.items()}
    save_file({key: leaf.contiguous() for key, leaf in example.items()}, folder / "example.safetensors")
    (folder / "example.py").write_text(READER.replace("SHOWN", shown), encoding="utf-8")


def _batch_dimensions(network: Network, x: Tensor, state: Tree) -> dict[str, dict[int, Dim]]:
    """Where each tensor of a state has its batch: where one row more makes it longer."""
    longer = network(torch.cat([x, x[:1]])).state
    return {
        key: {
            place: BATCH
            for place, (size, more) in enumerate(zip(leaf.shape, longer[key].shape, strict=True))
            if size != more
        }
        for key, leaf in state.items()
    }


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
READER = '''"""Reads a sequence with the exported network: needs torch and safetensors alone."""

import torch
from safetensors.torch import load_file

network, example = torch.export.load("network.pt2").module(), load_file("example.safetensors")
state = {name[6:]: leaf for name, leaf in example.items() if name.startswith("state.")}
for time in range(example["x"].shape[1]):
    logits, state = network(example["x"][:, time], state)
    SHOWN
print("largest difference from the run's logits:", (logits - example["logits"][:, -1]).abs().max().item())
'''
OPTIMIZER = '''"""Trains a small network with the exported optimizer: needs torch and metalearn."""

from pathlib import Path

import torch
from metalearn import LearnedOptimizer
from sklearn.datasets import load_digits

torch.manual_seed(0)
images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
model = torch.nn.Sequential(torch.nn.Linear(64, 20), torch.nn.Sigmoid(), torch.nn.Linear(20, 10))
optimizer = LearnedOptimizer.from_run(Path(__file__).parent)(model.named_parameters())
for step in range(101):
    rows = torch.randint(len(images), (128,))
    loss = torch.nn.functional.cross_entropy(model(images[rows].float() / 16), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step}: loss {loss.item():.4f}")
'''
READERS: dict[str, tuple[Split, str]] = {  # the split that is read, and what the example says of each input
    "language_model": ("test", 'print("most likely next symbols:", logits.argmax(dim=1).tolist())'),
    "handwriting": ("valid", 'print("chance that the pen is lifted:", logits[:, -1].sigmoid().tolist())'),
}
WRITERS = {
    "classification": _write_classifier,
    "language_model": _write_reader,
    "handwriting": _write_reader,
    "translation": write_translator,
}
