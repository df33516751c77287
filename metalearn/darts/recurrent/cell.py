"""The recurrent cell of one genotype, and the language model around it (section 3.1.2, appendix A.2.2)."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from metalearn.darts.config import RecurrentCellOptions
from metalearn.darts.recurrent.genotype import RecurrentGenotype, load, random_genotype
from metalearn.darts.recurrent.language_model import Masks, Words, masked, uniform
from metalearn.network import Network, Output
from metalearn.task import TaskSpec
from metalearn.tree import Tree

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


class RecurrentCellNetwork(Network):
    """A language model whose cell is one genotype's; `genotype` is the one it has.

    "random" draws its genotype from torch's global generator, which the builder seeds.
    """

    def __init__(self, options: RecurrentCellOptions, spec: TaskSpec) -> None:
        super().__init__()
        random = options.genotype == "random"
        self.genotype = random_genotype(options.nodes) if random else load(options.genotype)
        self.words = Words(options, spec)
        self.cell = RecurrentCell(self.genotype, options.units, options.start)

    def forward(self, x: Int[Tensor, "batch time"], state: Tree | None = None) -> Output:
        """Logits [batch time symbol]; the state is `hidden` [batch units]."""
        batch = x.shape[0]  # len would be a constant to torch.export
        embedded, hidden = self.words.embed(x), self.words.start(batch, state)
        masks, outputs = self.words.masks(batch), []
        for word in embedded.unbind(0):
            hidden = self.cell(word, hidden, masks)
            outputs.append(hidden)
        return self.words.score(torch.stack(outputs))


class RecurrentCell(nn.Module):
    """One weight for the initial state and one for each node: [inputs, gate and candidate], no biases.

    The paper's text has no gates in the initial state and none in the nodes' sizes; this is the authors'
    code, whose number of parameters the paper reports.
    """

    def __init__(self, genotype: RecurrentGenotype, units: int, start: float) -> None:
        super().__init__()
        self.genotype = genotype
        self.first = nn.Parameter(uniform(start, 2 * units, 2 * units))
        self.nodes = nn.ParameterList(uniform(start, units, 2 * units) for _ in genotype.nodes)

    def forward(
        self, x: Float[Tensor, "batch units"], hidden: Float[Tensor, "batch units"], masks: Masks | None
    ) -> Float[Tensor, "batch units"]:
        """The next hidden state: the mean of the states that the genotype names."""
        states = [initial_state(x, hidden, self.first, masks)]
        for edge, weight in zip(self.genotype.nodes, self.nodes, strict=True):
            state = states[edge.source]
            product = masked(state, masks and masks.hidden) @ weight
            states.append(highway(state, product, FUNCTIONS[edge.operation]))
        return torch.stack([states[node] for node in self.genotype.concat]).mean(dim=0)


def initial_state(x: Tensor, hidden: Tensor, weight: Tensor, masks: Masks | None) -> Tensor:
    """Node 0, from the input and the last hidden state."""
    both = torch.cat([masked(x, masks and masks.input), masked(hidden, masks and masks.hidden)], dim=-1)
    return highway(hidden, both @ weight, torch.tanh)


def highway(
    state: Float[Tensor, "... units"],
    product: Float[Tensor, "... two*units"],
    function: Callable[[Tensor], Tensor],
) -> Float[Tensor, "... units"]:
    """The state moved towards an activation, as far as a gate opens."""
    gate, candidate = product.chunk(2, dim=-1)
    return state + torch.sigmoid(gate) * (function(candidate) - state)
