"""A differentiable neural computer: an LSTM with an addressable memory (Graves et al. 2016, methods)."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from metalearn.learned_optimizers.black_box.controller import Controller, Lstm, uniform
from metalearn.tree import Tree

TINY = 1e-6  # keeps lengths and usages off 0, where they have no derivative
Weighting = Float[Tensor, "batch slot"]


def content_weighting(
    memory: Float[Tensor, "batch slot width"],
    keys: Float[Tensor, "batch head width"],
    strengths: Float[Tensor, "batch head"],
) -> Float[Tensor, "batch head slot"]:
    """softmax over slots of strength times cosine similarity."""
    rows = memory * (memory.square().sum(2, keepdim=True) + TINY).rsqrt()
    wanted = keys * (keys.square().sum(2, keepdim=True) + TINY).rsqrt()
    return torch.softmax(strengths.unsqueeze(2) * (wanted @ rows.transpose(1, 2)), 2)


def usage_after(
    usage: Weighting, write: Weighting, free: Float[Tensor, "batch head"], reads: Tensor
) -> Weighting:
    """What was written is in use until a head that read it frees it; `reads` [batch head slot]."""
    kept = (1 - free.unsqueeze(2) * reads).prod(1)
    return (usage + write - usage * write) * kept


def allocation(usage: Weighting) -> Weighting:
    """The least used slot first, the next by as much as that one is in use."""
    ascending, order = (TINY + (1 - TINY) * usage).sort(dim=1, stable=True)
    # products by their logarithms: the derivative of cumprod has no deterministic form on CUDA
    smaller = torch.ones_like(usage[0]).expand(usage.shape[1], -1).triu(1)
    before = torch.exp(ascending.log() @ smaller)
    return ((1 - ascending) * before).gather(1, order.argsort(1))


def links_after(
    links: Float[Tensor, "batch slot slot"], precedence: Weighting, write: Weighting
) -> Float[Tensor, "batch slot slot"]:
    """L[i, j]: how far slot i was written right after slot j; rows and columns sum to at most 1."""
    kept = 1 - write.unsqueeze(2) - write.unsqueeze(1)
    drawn = kept * links + write.unsqueeze(2) * precedence.unsqueeze(1)
    return drawn * (1 - torch.eye(links.shape[1], dtype=links.dtype, device=links.device))


class Interface(NamedTuple):
    """What the LSTM says to the memory in one step."""

    read_keys: Float[Tensor, "batch head width"]
    read_strengths: Float[Tensor, "batch head"]  # at least 1
    write_key: Float[Tensor, "batch 1 width"]
    write_strength: Float[Tensor, "batch 1"]  # at least 1
    erase: Float[Tensor, "batch width"]  # 0 to 1, as all gates
    write: Float[Tensor, "batch width"]
    free: Float[Tensor, "batch head"]
    allocate: Float[Tensor, "batch 1"]
    write_gate: Float[Tensor, "batch 1"]
    modes: Float[Tensor, "batch head 3"]  # backward, by content, forward; sum to 1


class Dnc(Controller):
    """Output = W_h h + W_r reads, h of an LSTM that sees the input and what was read before.

    Weights: the LSTM's, `interface.weight` and `.bias`, and `read.weight` [heads * width, outputs]. State:
    beside `hidden` and `cell` the memory [batch slot width], usage, precedence and write weighting [batch
    slot], links [batch slot slot], read weightings [batch head slot] and what they read [batch head width].
    """

    def __init__(self, lstm: Lstm, slots: int, width: int, heads: int) -> None:
        """`lstm` takes the input and the `heads * width` numbers that were read."""
        self.lstm, self.slots, self.width, self.heads = lstm, slots, width, heads
        self.inputs, self.outputs = lstm.inputs - heads * width, lstm.outputs
        self.sizes = (heads * width, heads, width, 1, width, width, heads, 1, 1, 3 * heads)

    def init(self, rng: Generator) -> Tree:
        """Uniform within 1/sqrt(hidden), biases 0."""
        hidden = self.lstm.hidden
        return self.lstm.init(rng) | {
            "interface.weight": uniform(hidden, sum(self.sizes), hidden, rng),
            "interface.bias": torch.zeros(sum(self.sizes)),
            "read.weight": uniform(self.heads * self.width, self.outputs, hidden, rng),
        }

    def state(self, batch: int, like: Tensor) -> Tree:
        slots = {name: like.new_zeros(batch, self.slots) for name in ("usage", "precedence", "write")}
        return (
            self.lstm.state(batch, like)
            | slots
            | {
                "memory": like.new_zeros(batch, self.slots, self.width),
                "links": like.new_zeros(batch, self.slots, self.slots),
                "weightings": like.new_zeros(batch, self.heads, self.slots),
                "reads": like.new_zeros(batch, self.heads, self.width),
            }
        )

    def apply(
        self, meta: Tree, features: Float[Tensor, "batch inputs"], state: Tree
    ) -> tuple[Float[Tensor, "batch outputs"], Tree]:
        seen = torch.cat([features, state["reads"].flatten(1)], 1)
        after = self.lstm.advance(meta, seen, state)
        says = self.interface(torch.addmm(meta["interface.bias"], after["hidden"], meta["interface.weight"]))
        after |= self.written(says, state)
        after |= self.read(says, state, after)
        output = torch.addmm(meta["output.bias"], after["hidden"], meta["output.weight"])
        return output + after["reads"].flatten(1) @ meta["read.weight"], after

    def interface(self, said: Float[Tensor, "batch numbers"]) -> Interface:
        """The LSTM's words in their ranges."""
        part = said.split(self.sizes, 1)
        return Interface(
            read_keys=part[0].unflatten(1, (self.heads, self.width)),
            read_strengths=1 + F.softplus(part[1]),
            write_key=part[2].unsqueeze(1),
            write_strength=1 + F.softplus(part[3]),
            erase=torch.sigmoid(part[4]),
            write=part[5],
            free=torch.sigmoid(part[6]),
            allocate=torch.sigmoid(part[7]),
            write_gate=torch.sigmoid(part[8]),
            modes=torch.softmax(part[9].unflatten(1, (self.heads, 3)), 2),
        )

    def written(self, says: Interface, state: Tree) -> Tree:
        """Memory, usage, links and precedence after this step's write."""
        usage = usage_after(state["usage"], state["write"], says.free, state["weightings"])
        found = content_weighting(state["memory"], says.write_key, says.write_strength).squeeze(1)
        place = says.allocate * allocation(usage) + (1 - says.allocate) * found
        write = says.write_gate * place
        left = 1 - write.unsqueeze(2) * says.erase.unsqueeze(1)
        return {
            "usage": usage,
            "write": write,
            "memory": state["memory"] * left + write.unsqueeze(2) * says.write.unsqueeze(1),
            "links": links_after(state["links"], state["precedence"], write),
            "precedence": (1 - write.sum(1, keepdim=True)) * state["precedence"] + write,
        }

    def read(self, says: Interface, state: Tree, after: Tree) -> Tree:
        """Where each head looks now: after or before where it looked, or by content; and what is there."""
        forward = state["weightings"] @ after["links"].transpose(1, 2)
        backward = state["weightings"] @ after["links"]
        found = content_weighting(after["memory"], says.read_keys, says.read_strengths)
        modes = says.modes.unsqueeze(3)
        weightings = modes[:, :, 0] * backward + modes[:, :, 1] * found + modes[:, :, 2] * forward
        return {"weightings": weightings, "reads": weightings @ after["memory"]}
