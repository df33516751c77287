"""The continuous relaxation of the recurrent cell: nodes take every activation of all earlier ones."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from metalearn.darts.config import RecurrentSupernetOptions
from metalearn.darts.recurrent.cell import FUNCTIONS, initial_state
from metalearn.darts.recurrent.genotype import (
    ACTIVATIONS,
    RecurrentGenotype,
    discretise,
    encode,
    random_genotype,
)
from metalearn.darts.recurrent.language_model import Masks, Words, masked, uniform
from metalearn.darts.recurrent.scan import Scan
from metalearn.darts.space import Choices, Mixture, SearchSpace
from metalearn.network import Output
from metalearn.registry import UserError
from metalearn.task import TaskSpec
from metalearn.tree import Tree

KIND = "cell"
Running = list[list[bool]] | None


class RecurrentSupernet(SearchSpace):
    """The language model that a recurrent cell is searched in.

    `allowed` says which activations the space has on which edge; None: all.
    """

    drops_paths = False

    def __init__(
        self,
        options: RecurrentSupernetOptions,
        spec: TaskSpec,
        allowed: dict[str, Bool[Tensor, "edge operation"]] | None = None,
    ) -> None:
        super().__init__()
        self.options, self.spec = options, spec
        targets = tuple(node for node in range(1, options.nodes + 1) for _ in range(node))
        sources = tuple(source for node in range(1, options.nodes + 1) for source in range(node))
        everything = torch.ones(len(sources), len(ACTIVATIONS), dtype=torch.bool)
        mask = everything if allowed is None else allowed[KIND]
        self.choices = {KIND: Choices(ACTIVATIONS, targets, sources, mask)}
        self.words = Words(options, spec)
        self.cell = MixedRecurrentCell(options.nodes, options.units, options.start)

    def forward(
        self, x: Int[Tensor, "batch time"], state: Tree | None = None, mixture: Mixture | None = None
    ) -> Output:
        """Logits [batch time symbol] under the weights "cell"; the state is `hidden` [batch units]."""
        self._check_rows(len(x))
        weights, running = self._shares(mixture)
        embedded, hidden = self.words.embed(x), self.words.start(len(x), state)
        masks = self.words.masks(len(x))
        if self._fuses(running):
            return self.words.score(self.cell.scan(embedded, hidden, masks, weights))
        outputs = []
        for word in embedded.unbind(0):
            hidden = self.cell(word, hidden, masks, weights, running)
            outputs.append(hidden)
        return self.words.score(torch.stack(outputs))

    def _fuses(self, running: Running) -> bool:
        """The fused form mixes everything, by the batch's statistics, in full precision."""
        autocast = torch.is_autocast_enabled(self.words.weight.device.type)
        return self.fused and running is None and self.cell.norm.training and not autocast

    def _shares(self, mixture: Mixture | None) -> tuple[Float[Tensor, "edge operation"], Running]:
        """The mixture's weights, 0 where nothing runs, and what runs."""
        if mixture is None:
            shape = self.choices[KIND].shape
            return self.words.weight.new_full(shape, 1 / shape[1]), None
        weights = mixture.weights[KIND]
        if mixture.running is None:
            return weights, None
        running = mixture.running[KIND]
        return weights * weights.new_tensor(running), running

    def _check_rows(self, batch: int) -> None:
        if self.cell.norm.training and batch < 2:
            raise UserError(
                "network darts_recurrent_supernet: got 1 row of text, which has no variance to normalise "
                "by; raise task.batch and task.evaluation_batch, or set method.evaluation_statistics=running"
            )

    def discretise(self, strengths: Tree) -> RecurrentGenotype:
        """The strongest edge of each node."""
        return discretise(strengths[KIND])

    def encode(self, genotype: RecurrentGenotype) -> dict[str, Bool[Tensor, "edge operation"]]:  # type: ignore[override]
        """Where its activations stand among ACTIVATIONS."""
        return {KIND: encode(genotype)}

    def sample(self, rng: torch.Generator) -> RecurrentGenotype:
        """A predecessor and an activation other than none for each node."""
        return random_genotype(self.options.nodes, rng)

    def restricted(
        self, cells: int, allowed: dict[str, Bool[Tensor, "edge operation"]]
    ) -> "RecurrentSupernet":
        """The same with the allowed activations. Raises UserError for more cells than its one."""
        if cells != 1:
            raise UserError(
                f"network darts_recurrent_supernet: got {cells} cells, it has one and no depth to stage; "
                "set method.stages.cells=[]"
            )
        return RecurrentSupernet(self.options, self.spec, allowed)


class MixedRecurrentCell(nn.Module):
    """A cell whose nodes sum, over all earlier states and all activations, what `highway` would give.

    The share of `none` is lost; one batch normalisation, which all nodes and the initial state go through,
    sets their scale again (section 3.1.2 and the authors' code).
    """

    def __init__(self, nodes: int, units: int, start: float) -> None:
        super().__init__()
        self.first = nn.Parameter(uniform(start, 2 * units, 2 * units))
        self.nodes = nn.ParameterList(uniform(start, units, 2 * units) for _ in range(nodes))
        self.norm = nn.BatchNorm1d(units, affine=False)

    def forward(
        self,
        x: Float[Tensor, "batch units"],
        hidden: Float[Tensor, "batch units"],
        masks: Masks | None,
        weights: Float[Tensor, "edge operation"],
        running: Running,
    ) -> Float[Tensor, "batch units"]:
        """The next hidden state: the mean of all nodes but the initial state."""
        states, edge = [self.norm(initial_state(x, hidden, self.first, masks))], 0
        for weight in self.nodes:
            rows = slice(edge, edge + len(states))
            used = [
                place for place in range(len(states)) if running is None or any(running[edge + place][1:])
            ]
            node = torch.zeros_like(hidden)
            if used:
                sources = torch.stack([states[place] for place in used])
                product = masked(sources, masks and masks.hidden) @ weight
                shares = weights[rows] if running is None else weights[rows][used]
                node = mix(sources, product, shares, _wanted(running, rows))
            edge += len(states)
            states.append(self.norm(node))
        return torch.stack(states[1:]).mean(dim=0)

    def scan(
        self,
        inputs: Float[Tensor, "time batch units"],
        hidden: Float[Tensor, "batch units"],
        masks: Masks | None,
        weights: Float[Tensor, "edge operation"],
    ) -> Float[Tensor, "time batch units"]:
        """The hidden states of a whole sequence, by the fused form; normalised by the batch."""
        units = hidden.shape[1]
        projected = masked(inputs, masks and masks.input) @ self.first[:units]
        mask = torch.ones_like(hidden) if masks is None else masks.hidden
        shares = weights.to(projected.dtype).contiguous()
        outputs, statistics = Scan.apply(projected, hidden, mask, shares, self.first[units:], *self.nodes)
        if self.norm.track_running_stats:
            follow(self.norm, statistics.flatten(0, 1), len(hidden))
        return outputs


def mix(
    sources: Float[Tensor, "edge batch units"],
    product: Float[Tensor, "edge batch two*units"],
    shares: Float[Tensor, "edge operation"],
    wanted: list[bool],
) -> Float[Tensor, "batch units"]:
    """The sum over edges and wanted activations of share * (state + gate (activation - state))."""
    gate, candidate = product.chunk(2, dim=-1)
    gate, total = torch.sigmoid(gate), torch.zeros_like(sources[0])
    for place, name in enumerate(ACTIVATIONS):
        if name != "none" and wanted[place]:
            moved = sources + gate * (FUNCTIONS[name](candidate) - sources)
            total = total + (shares[:, place, None, None] * moved).sum(dim=0)
    return total


@torch.no_grad()
def follow(norm: nn.BatchNorm1d, statistics: Float[Tensor, "call two units"], batch: int) -> None:
    """Move the running statistics as by so many calls: each keeps 1 - momentum of what was before it."""
    assert norm.momentum is not None
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    calls, kept = len(statistics), 1.0 - norm.momentum
    ages = torch.arange(calls - 1, -1, -1, device=statistics.device, dtype=statistics.dtype)
    mean, variance = torch.einsum("c,csu->su", norm.momentum * kept**ages, statistics)
    norm.running_mean.mul_(kept**calls).add_(mean)
    norm.running_var.mul_(kept**calls).add_(variance, alpha=batch / (batch - 1))
    norm.num_batches_tracked += calls


def _wanted(running: Running, rows: slice) -> list[bool]:
    """Which activations run on any edge of a node."""
    if running is None:
        return [True] * len(ACTIVATIONS)
    return [any(column) for column in zip(*running[rows], strict=True)]
