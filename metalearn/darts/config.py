"""Options of the search space, the derived network and the search; no torch."""

from dataclasses import dataclass, field

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
    space: str = choice("darts", "fair", "s1", "s2", "s3", "s4")  # which operations stand on which edge
    partial: int = number(at_least=1)  # one part in so many of the channels passes the operations (PC-DARTS)


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


@register("network", "darts_imagenet", "metalearn.darts.imagenet:ImagenetNetwork")
@dataclass
class ImagenetNetworkOptions:
    """The network of one genotype behind a stem for large images (ImageNet, mobile setting)."""

    name: str = required()
    genotype: str = required()  # as of darts_cell
    cells: int = number(at_least=3)
    channels: int = number(at_least=2)
    nodes: int = number(at_least=1)  # intermediate nodes of a random genotype's cells
    auxiliary: bool = required()  # a second classifier after the second reduction, in training only
    drop_path: float = number(at_least=0, below=1)  # probability at the end of training, from 0 linearly


@dataclass
class RecurrentOptions:
    """A language model around a recurrent cell; embedding and hidden state have the same units."""

    name: str = required()
    units: int = number(at_least=1)
    start: float = number(above=0)  # weights are uniform within this of 0
    word_dropout: float = number(at_least=0, below=1)  # of whole words of the vocabulary (dropoute)
    embedding_dropout: float = number(at_least=0, below=1)  # of embeddings, one mask a sequence (dropouti)
    input_dropout: float = number(at_least=0, below=1)  # at the cell's input, one mask a sequence (dropoutx)
    hidden_dropout: float = number(at_least=0, below=1)  # of every node's input, one mask too (dropouth)
    output_dropout: float = number(at_least=0, below=1)  # of the cell's outputs, one mask too (dropout)
    activation_penalty: float = number(at_least=0)  # times the mean square of outputs after dropout (alpha)
    temporal_penalty: float = number(at_least=0)  # times that of their change in time, before it (beta)


@register("network", "darts_recurrent_supernet", "metalearn.darts.recurrent.supernet:RecurrentSupernet")
@dataclass
class RecurrentSupernetOptions(RecurrentOptions):
    """The language model whose cell holds every activation on every edge."""

    nodes: int = number(at_least=1)  # that are searched, beside the initial state


@register("network", "darts_recurrent_cell", "metalearn.darts.recurrent.cell:RecurrentCellNetwork")
@dataclass
class RecurrentCellOptions(RecurrentOptions):
    """The language model of one recurrent genotype."""

    genotype: str = required()  # a published one's name, the path of a .json, or "random" (drawn by the seed)
    nodes: int = number(at_least=1)  # of a random genotype


@dataclass
class RelaxationOptions:
    """How alpha becomes weights of operations."""

    kind: str = choice("softmax", "gumbel", "concrete", "sigmoid", "dirichlet")
    temperature: float = number(above=0)  # of gumbel and concrete, at the start
    final_temperature: float = number(above=0)  # at the end, linearly
    edge_normalisation: bool = required()  # PC-DARTS: alpha also weighs the edges of a node
    penalty: float = number(at_least=0)  # weight of sigmoid's zero-one loss, or of dirichlet's prior


@dataclass
class MonitorOptions:
    """What tells a collapse; measured every so many steps."""

    every: int = number(at_least=0)  # steps; 0: never
    eigenvalue: str = choice("none", "lanczos", "power")  # the largest; largest magnitude
    iterations: int = number(at_least=1)  # Hessian-vector products
    batches: int = number(at_least=1)  # of alpha's data, for the eigenvalue and the gap


@dataclass
class StoppingOptions:
    """When a search ends before its steps are used up; looked at whenever the monitor measures."""

    kind: str = choice("none", "eigenvalue", "skips")
    window: int = number(at_least=1)  # measurements that an eigenvalue is averaged over, and compared across
    ratio: float = number(above=0, below=1)  # stop when the older average is below this part of the newer
    skips: int = number(at_least=1)  # stop when a normal cell has as many skip connections


@dataclass
class RegularisationOptions:
    """What else holds the supernet's weights back during the search."""

    drop_path: float = number(at_least=0, below=1)  # of operations, at the end of a linear schedule
    weight_decay: str = choice("constant", "linear", "adaptive")  # how `method.weight_decay` moves
    final_weight_decay: float = number(at_least=0)  # where linear ends
    factor: float = number(at_least=1)  # of one increase of adaptive, when the eigenvalue says stop
    largest_weight_decay: float = number(at_least=0)  # of adaptive


@dataclass
class SelectionOptions:
    """How a genotype is read from a search."""

    kind: str = choice("strength", "perturbation")
    steps: int = number(at_least=0)  # perturbation: steps of the weights from one decision to the next
    learning_rate: float = number(above=0)  # perturbation: at the first of them, in place of the other
    batches: int = number(at_least=1)  # perturbation: batches of alpha's data that judge a removal
    skips: int | None = number(at_least=0)  # most skip connections of a normal cell (P-DARTS); null: any


@dataclass
class StagesOptions:
    """A search in stages (P-DARTS): deeper networks with fewer operations; empty lists: one stage."""

    cells: list[int] = number(at_least=3)  # of each later stage's network; the first is the configured one
    operations: list[int] = number(at_least=2)  # that an edge has left in each later stage
    skip_dropout: list[float] = number(at_least=0, below=1)  # of each stage, at its start; falls to 0


@dataclass
class WeightOptions:
    """How a supernet's weights learn during a search."""

    name: str = required()
    learning_rate: float = number(above=0)
    final_learning_rate: float = number(at_least=0)  # where the cosine ends: paper 0, code 0.001
    schedule: str = choice("none", "cosine")
    schedule_every: str = choice("step", "epoch")  # how often the cosine moves
    momentum: float = number(at_least=0, below=1)
    weight_decay: float = number(at_least=0)
    clip: float | None = number(above=0)  # norm of the gradient in the weight step
    nominal_time: int | None = number(at_least=1)  # texts: the rate is in proportion to the length over this
    weight_split: str = choice("search_train", "train")  # what the weights learn on


@register("method", "darts", "metalearn.darts.search:Darts")
@dataclass
class DartsOptions(WeightOptions):
    """The alternating search; where paper and authors' code disagree, both are offered."""

    unroll_momentum: bool = required()  # the unrolled step has the real one's momentum (code)
    unroll_weight_decay: bool = required()  # and its weight decay (code)
    unroll_clip: float | None = number(above=0)  # and is clipped (code, recurrent cells)
    unroll_clip_derivative: str = choice("exact", "constant", "authors")  # what clipping is taken to be
    unroll_clip_valid: bool = required()  # the validation gradient is clipped too (code, recurrent cells)
    noise: str = choice("common", "redrawn")  # dropout masks of the passes over one batch: ours, code
    alpha_init: str = choice("zeros", "normal")  # paper, code
    alpha_scale: float = number(above=0)  # standard deviation of the normal start
    alpha_learning_rate: float = number(above=0)
    alpha_beta1: float = number(at_least=0, below=1)
    alpha_beta2: float = number(at_least=0, below=1)
    alpha_weight_decay: float = number(at_least=0)
    warm_up: int = number(at_least=0)  # steps of each stage before alpha moves
    alpha_split: str = choice("search_valid", "valid", "train")  # what alpha learns on
    joint: bool | None = required()  # alpha and weights at once by one SGD on the weights' batches (3.1.1)
    evaluation_statistics: str = choice("batch", "running")  # of batch normalisation: paper, code
    valid_batches: str = choice("fresh", "stream")  # reshuffle before each alpha step (code), or each pass
    relaxation: RelaxationOptions = field(default_factory=RelaxationOptions)
    regularisation: RegularisationOptions = field(default_factory=RegularisationOptions)
    monitor: MonitorOptions = field(default_factory=MonitorOptions)
    stopping: StoppingOptions = field(default_factory=StoppingOptions)
    selection: SelectionOptions = field(default_factory=SelectionOptions)
    stages: StagesOptions = field(default_factory=StagesOptions)


@register("method", "darts_random_search", "metalearn.darts.random_search:RandomSearch")
@dataclass
class RandomSearchOptions(WeightOptions):
    """Random search with shared weights (Li and Talwalkar 2019): the control of a search."""

    score_split: str = choice("search_valid", "valid")  # what architectures are compared on
    candidates: int = number(at_least=1)  # architectures drawn at the end
    batches: int = number(at_least=1)  # of a sweep, that each is scored on
