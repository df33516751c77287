"""Options of the search space, the derived network and the search; no torch."""

from dataclasses import dataclass

from metalearn.config import choice, number, required
from metalearn.registry import register


@register("network", "darts_supernet", "metalearn.darts.supernet:Supernet")
@dataclass
class SupernetOptions:
    """The network that holds every candidate operation on every edge."""

    name: str = required()
    cells: int = number(at_least=3)  # the cells at a third and at two thirds reduce
    channels: int = number(at_least=2)  # of the first cell; even, doubled at each reduction
    stem_multiplier: int = number(at_least=1)  # the stem has this many times `channels`
    nodes: int = number(at_least=1)  # intermediate nodes of a cell


@register("network", "darts_cell", "metalearn.darts.derived:CellNetwork")
@dataclass
class CellNetworkOptions:
    """The network of one genotype."""

    name: str = required()
    genotype: str = required()  # a published one's name, the path of a .json, or "random" (drawn by the seed)
    cells: int = number(at_least=3)
    channels: int = number(at_least=2)
    stem_multiplier: int = number(at_least=1)
    nodes: int = number(at_least=1)  # intermediate nodes of a random genotype's cells
    auxiliary: bool = required()  # a second classifier after the second reduction, in training only
    drop_path: float = number(at_least=0, below=1)  # probability at the end of training, from 0 linearly


@register("method", "darts", "metalearn.darts.search:Darts")
@dataclass
class DartsOptions:
    """The alternating search; where paper and authors' code disagree, both are offered."""

    name: str = required()
    learning_rate: float = number(above=0)
    final_learning_rate: float = number(at_least=0)  # where the cosine ends: paper 0, code 0.001
    schedule_every: str = choice("step", "epoch")  # how often the cosine moves
    momentum: float = number(at_least=0, below=1)
    weight_decay: float = number(at_least=0)
    clip: float | None = number(above=0)  # norm of the gradient in the weight step; not in the unrolled one
    unroll_momentum: bool = required()  # the unrolled step has the real one's momentum (code)
    unroll_weight_decay: bool = required()  # and its weight decay (code)
    alpha_init: str = choice("zeros", "normal")  # paper, code
    alpha_scale: float = number(above=0)  # standard deviation of the normal start
    alpha_learning_rate: float = number(above=0)
    alpha_beta1: float = number(at_least=0, below=1)
    alpha_beta2: float = number(at_least=0, below=1)
    alpha_weight_decay: float = number(at_least=0)
    evaluation_statistics: str = choice("batch", "running")  # of batch normalisation: paper, code
    valid_batches: str = choice("fresh", "stream")  # reshuffle before each alpha step (code), or each pass
