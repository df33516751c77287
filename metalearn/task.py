"""What is learned on: data and a loss, with no opinion on what learns it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int, Int64, Shaped
from torch import Generator, Tensor

from metalearn.rng import Key
from metalearn.tree import Tree

Split = Literal["train", "valid", "test", "search_train", "search_valid"]
Kind = Literal[
    "classification", "language_model", "function", "few_shot", "handwriting", "translation", "mixture"
]  # the last: of several tasks together, which are told of but not asked for batches
PADDING, BEGIN, END = 0, 1, 2  # translation: what fills a sentence up, begins and ends it
Metrics = dict[str, Tensor]


class Batch(NamedTuple):
    """Inputs with their targets, and the key of all noise that belongs to them (`rng.seeded(*key)`).

    classification: x [batch channel height width] or [batch feature] float, y [batch] int64.
    language_model: x [batch time] int64, y [batch time] int64, the next symbols.
    function: the constants of `batch` problems; a point theta [batch dimension] is scored on them.
    few_shot: a meta-batch of tasks, x [task example ...] float, y [task example] int64 (classes) or
    [task example 1] float (regression); the first `TaskSpec.support` examples of a task are what it adapts
    on, the others what it is scored on. `loss` and `metrics` take one task's part as well.
    handwriting: x [batch time 3] float, the pen's moves (dx, dy) and whether it is lifted after them (1);
    y [batch time 3], the next ones; rows are filled up with NaN in y and 0 in x.
    translation: x [batch 2 time] int64, the source sentence and the target after the symbol that begins
    one; y [batch time] int64, the target to the symbol that ends it; all filled up with PADDING.
    """

    x: Shaped[Tensor, "batch ..."]
    y: Shaped[Tensor, "batch ..."]
    key: tuple[Key, ...]


@dataclass(frozen=True)
class TaskSpec:
    """What a task is, for networks to fit it and for reports to name its source."""

    name: str
    kind: Kind
    input_shape: tuple[int, ...]  # of one example, without batch: (1, 8, 8), (2,), () for symbols
    outputs: int  # classes, size of the alphabet (translation: of both languages), or dimension of theta
    sizes: dict[str, int]  # examples, symbols or functions by split
    metric: str  # what reports print first: "error" (%), "bits" (per character), "perplexity", "bleu", "loss"
    source: str
    licence: str
    provenance: str  # where these bytes came from: embedded, data_dir, download; and what was done to them
    digest: str  # sha256 of the data after reading
    support: int = 0  # few_shot: how many examples of a task are there to adapt on; 0 for other kinds
    comparable: bool = True  # False: a test figure on this copy must not be put beside published ones


class Task(ABC):
    """Data and a loss. `batch` is pure in (seed, split, index): resuming needs no loader state.

    Two splits with different names share no example, but for `train`, which is the union of its halves
    `search_train` and `search_valid` (DARTS section 3: weights learn on one, alpha on the other).
    """

    spec: TaskSpec

    @abstractmethod
    def batch(self, split: Split, index: int) -> Batch:
        """Batch number `index` >= 0 of an endless stream, shuffled and augmented as in training.

        language_model: batches of consecutive indices continue each other, row by row; position 0 of every
        row starts afresh where `index % batches(split) == 0`.
        """

    @abstractmethod
    def batches(self, split: Split) -> int:
        """How many batches one pass over the split takes in `batch`."""

    @abstractmethod
    def sweep(self, split: Split) -> Iterator[Batch]:
        """One pass in fixed order without augmentation, every example once: for evaluation."""

    @abstractmethod
    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """The differentiable mean loss: negative log-likelihood in nats, or function value."""

    @abstractmethod
    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        """Detached means over the batch by quantity, `loss` among them: "error" in %, "bits", ..."""


@runtime_checkable
class Continued(Protocol):
    """A task whose sequences a network can go on with: `metalearn sample`."""

    @property
    def opening(self) -> Shaped[Tensor, "..."]:
        """The input that stands before a sequence's first: the end of a line, a pen at rest."""
        ...

    def draw(
        self, output: Float[Tensor, "batch outputs"], rng: Generator, temperature: float
    ) -> Shaped[Tensor, "batch ..."]:
        """The next input, drawn from what a network says of it; at temperature 0 the likeliest."""
        ...


@runtime_checkable
class Pictured(Protocol):
    """A task whose sequences are looked at."""

    def picture(self, points: Float[Tensor, "time ..."]) -> str:
        """A sequence as the text of an SVG."""
        ...


@runtime_checkable
class Imaged(Protocol):
    """A task of functions whose points are images."""

    def images(
        self, theta: Float[Tensor, "batch dimension"], batch: Batch
    ) -> Float[Tensor, "batch 3 height width"]:
        """The images, from 0 to 1, that points stand for."""
        ...


@runtime_checkable
class Written(Protocol):
    """A task whose symbols stand for text."""

    def encode(self, text: str) -> Int64[Tensor, " time"]:
        """Its symbols. Raises UserError for one that is not in the alphabet."""
        ...

    def decode(self, symbols: Int[Tensor, " time"]) -> str:
        """The text that `encode` reads."""
        ...


@runtime_checkable
class Translated(Protocol):
    """A task that scores whole answers: translations, by BLEU."""

    def score(self, batches: Sequence[Batch], answers: Sequence[list[int]]) -> Metrics:
        """Metrics of one answer to each source sentence of a sweep, in their order."""
        ...


@runtime_checkable
class Queried(Protocol):
    """A task whose functions are asked for their values at one point after another, to be made small.

    Points lie in [0, 1]^dimension, `TaskSpec.outputs` of it. What comes may depend on what was asked before:
    a function drawn from a process is made up as it is asked. Differentiable in the points.
    """

    most_queries: int | None  # how often a function may be asked; None: any number of times

    def begin(self, batch: Batch) -> Tree:
        """The functions of a batch, none of them asked yet."""
        ...

    def query(self, state: Tree, x: Float[Tensor, "batch dimension"]) -> tuple[Float[Tensor, " batch"], Tree]:
        """Each function at its point, in float64, and what they are thereafter."""
        ...


@runtime_checkable
class Predicted(Queried, Protocol):
    """Queried functions whose distribution is known: a Gaussian process's."""

    def predict(
        self, state: Tree, x: Float[Tensor, "batch points dimension"]
    ) -> tuple[Float[Tensor, "batch points"], Float[Tensor, "batch points"]]:
        """Mean and standard deviation, > 0, of the values at points, given all that was answered."""
        ...
