"""Translators as two programs: what reads a sentence, and what says the next piece of its translation."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import Dim, export, save

from metalearn.network import Network
from metalearn.task import Task
from metalearn.tree import Tree

BATCH, SOURCE = Dim("batch", min=1), Dim("source", min=2)
LONGEST = 48  # pieces that an encoder's program reads at most: its loop over them is unrolled
SAID = 6  # pieces of the example


@runtime_checkable
class Attentive(Protocol):
    """A translator that remembers a source sentence, as a named tuple [batch ...], while it says another."""

    decoder: Any  # `initial_states(batch)`: a tuple of tensors [batch units] for each layer

    def remember(self, source: Tensor) -> Any:
        """What there is to attend to."""
        ...

    def read(self, target: Tensor, memory: Any, states: Any) -> tuple[Tensor, Tensor, Any]:
        """Logits [time batch pieces], attention's weights [time batch source], states."""
        ...


class _Remember(nn.Module):
    """From sentences [batch source] to what there is to attend to."""

    def __init__(self, network: Attentive) -> None:
        super().__init__()
        self.network = network

    def forward(self, source: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network.remember(source))


class _Say(nn.Module):
    """From the last piece [batch], the memory and a state to the next one's logits, weights and state."""

    def __init__(self, network: Attentive, kind: type) -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, piece: Tensor, memory: tuple[Tensor, ...], state: Tree) -> tuple[Tensor, Tensor, Tree]:
        logits, weights, last = self.network.read(piece[None], self.kind(*memory), _nested(state))
        return logits[0], weights[0], _flat(last)


def _flat(states: Any) -> Tree:
    return {
        f"{layer:02}.{part}": leaf for layer, state in enumerate(states) for part, leaf in enumerate(state)
    }


def _nested(state: Tree) -> tuple[tuple[Tensor, ...], ...]:
    layers: dict[str, list[Tensor]] = {}
    for name, leaf in state.items():
        layers.setdefault(name.partition(".")[0], []).append(leaf)
    return tuple(tuple(parts) for parts in layers.values())


@torch.no_grad()
def write_translator(network: Network, task: Task, folder: Path) -> None:
    """`encoder.pt2`, for sentences as long as the longest test ones, `decoder.pt2`, and their example."""
    assert isinstance(network, Attentive)
    last = [batch.x for batch in task.sweep("test")][-1][-2:].cpu()  # the longest
    x = torch.cat([last, last])[:2]
    source, target = x[:, 0, :LONGEST].contiguous(), x[:, 1, :SAID].contiguous()
    memory = network.remember(source)
    states = network.decoder.initial_states(len(x))
    save(export(_Remember(network), (source,), dynamic_shapes=({0: BATCH},)), folder / "encoder.pt2")
    free = tuple({0: BATCH, 1: SOURCE} for _ in memory), {name: {0: BATCH} for name in _flat(states)}
    say = (target[:, 0].contiguous(), tuple(memory), _flat(states))
    program = export(_Say(network, type(memory)), say, dynamic_shapes=({0: BATCH}, *free))
    save(program, folder / "decoder.pt2")
    logits = network.read(target.t(), memory, states)[0]
    example = {"source": source, "target": target, "logits": logits}
    example |= {f"state.{name}": leaf for name, leaf in _flat(states).items()}
    save_file({name: leaf.contiguous() for name, leaf in example.items()}, folder / "example.safetensors")
    text = EXAMPLE.replace("LENGTH", str(source.shape[1]))
    (folder / "example.py").write_text(text, encoding="utf-8")


EXAMPLE = '''"""Says a translation again with the exported programs: needs torch and safetensors alone.

The encoder reads sentences of LENGTH pieces, shorter ones filled up with 0; the decoder takes any.
"""

import torch
from safetensors.torch import load_file

encoder, decoder = (torch.export.load(f"{name}.pt2").module() for name in ("encoder", "decoder"))
example = load_file("example.safetensors")
state = {name[6:]: leaf for name, leaf in example.items() if name.startswith("state.")}
memory = encoder(example["source"])
for time in range(example["target"].shape[1]):
    logits, weights, state = decoder(example["target"][:, time], memory, state)
    print("most likely next pieces:", logits.argmax(dim=1).tolist())
print("largest difference from the run's logits:", (logits - example["logits"][-1]).abs().max().item())
'''
