"""Handwriting: predict the pen's next move from those before it (Graves 2013, section 4)."""

import math
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec
from tasks import mixture, strokes
from tasks.config import HandwritingOptions
from tasks.examples import digest


class Lines(NamedTuple):
    """Handwriting as a reader gives it."""

    moves: Float[Tensor, "point 3"]  # dx, dy, lifted after it: all lines one after another
    lengths: Int64[Tensor, " line"]  # moves of each line
    ranges: dict[str, range]  # lines of train, valid and test; they follow each other in this order
    source: str
    licence: str
    provenance: str
    comparable: bool = True


class Handwriting(Task, ABC):
    """Lines of different lengths; each is read from a move of nothing, x = (0, 0, 0), to its last.

    Moves are normalised by mean and deviation of the training lines, dx and dy each. In `batch`, a line is
    scaled by a factor within 1 -+ `scaling`, drawn by (seed, name, split, index). `search_train` and
    `search_valid` are the halves of `train`.

    A pass of `batch` meets every line once, in an order by (seed, split, pass): shuffled, then sorted by
    length within every `bucket` batches, whose order is shuffled again; what does not fill a batch comes
    last. Shorter lines end in padding. A network that reads from the past only needs no mask: what it says of
    padding is left out of the loss, and nothing comes after. (Its last state is that after the padding.)

    What training descends is a mean over points (`per: point`), whose gradient is of the order of 1 and is
    clipped where it explodes; that of a sum over a line grows with its length, and a norm of 5 would clip it
    at every step. To Adam the scale is all the same otherwise. The metric is nats a line, whatever `per` is.
    """

    def __init__(self, options: HandwritingOptions, seed: int, lines: Lines, device: torch.device) -> None:
        self.options, self.seed = options, seed
        self.ranges = _ranges(lines.ranges)
        self.lengths = lines.lengths.tolist()  # on the host: a batch's shape depends on them
        self.starts = (lines.lengths.cumsum(0) - lines.lengths).to(device)
        self.ends = lines.lengths.cumsum(0).to(device)
        self.moves = lines.moves.float().to(device)
        trained = lines.moves[: int(lines.lengths[: self.ranges["train"].stop].sum()), :2].double()
        self.mean = trained.mean(0).float().to(device)
        self.deviation = trained.std(0, correction=0).float().to(device)
        self._passes: dict[str, tuple[int, list[list[int]]]] = {}  # the current one, by split
        self.spec = TaskSpec(
            name=options.name,
            kind="handwriting",
            input_shape=(3,),
            outputs=mixture.outputs(options.components),
            sizes={split: len(rows) for split, rows in self.ranges.items()},
            metric="loss",
            source=lines.source,
            licence=lines.licence,
            provenance=lines.provenance,
            digest=digest(lines.moves, lines.lengths),
            comparable=lines.comparable,
        )

    def batches(self, split: Split) -> int:
        return math.ceil(len(self._rows(split)) / self.options.batch)

    def batch(self, split: Split, index: int) -> Batch:
        turn, place = divmod(index, self.batches(split))
        key = (self.seed, self.options.name, split, index)
        rows = self._pass(split, turn)[place]
        width = self.options.scaling
        factors = 1.0 + width * (2.0 * torch.rand(len(rows), generator=generator(*key, "scale")) - 1.0)
        return self._batch(rows, factors, key)

    def sweep(self, split: Split) -> Iterator[Batch]:
        rows, size = list(self._rows(split)), self.options.evaluation_batch
        for index, start in enumerate(range(0, len(rows), size)):
            part = rows[start : start + size]
            yield self._batch(part, torch.ones(len(part)), (self.options.name, split, "sweep", index))

    def _rows(self, split: Split) -> range:
        """The split's line numbers. Raises UserError if it has none."""
        if not len(self.ranges[split]):
            raise UserError(
                f"task {self.options.name}: split {split} has no lines; choose another task.split that gives "
                f"it some, or do not evaluate {split} (train.test=false)"
            )
        return self.ranges[split]

    def _pass(self, split: Split, turn: int) -> list[list[int]]:
        """The line numbers of each batch of a pass: a function of the key, the last one is kept."""
        if split not in self._passes or self._passes[split][0] != turn:
            rng = generator(self.seed, "order", self.options.name, split, turn)
            self._passes[split] = turn, self._ordered(self._rows(split), rng)
        return self._passes[split][1]

    def _ordered(self, rows: range, rng: Generator) -> list[list[int]]:
        size = self.options.batch
        order = (torch.randperm(len(rows), generator=rng) + rows.start).tolist()
        whole = len(order) // size * size
        batches = []
        for start in range(0, whole, size * self.options.bucket):
            bucket = order[start : min(start + size * self.options.bucket, whole)]
            bucket.sort(key=self.lengths.__getitem__)
            batches += [bucket[first : first + size] for first in range(0, len(bucket), size)]
        shuffled = [batches[place] for place in torch.randperm(len(batches), generator=rng).tolist()]
        return shuffled + ([order[whole:]] if whole < len(order) else [])

    def _batch(self, rows: list[int], factors: Float[Tensor, " batch"], key: tuple[str | int, ...]) -> Batch:
        device = self.moves.device
        chosen = torch.tensor(rows, device=device)
        times = torch.arange(max(self.lengths[row] for row in rows), device=device)
        places = self.starts[chosen, None] + times
        here = (places < self.ends[chosen, None]).unsqueeze(-1)
        raw = self.moves[places.clamp(max=len(self.moves) - 1)]
        offsets = (raw[..., :2] * factors.to(device)[:, None, None] - self.mean) / self.deviation
        moves = torch.cat([offsets, raw[..., 2:]], dim=-1)
        before = torch.cat([torch.zeros_like(moves[:, :1]), moves[:, :-1]], dim=1)
        return Batch(before.where(here, 0.0), moves.where(here, torch.nan), key)

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        here = ~batch.y[..., 2].isnan()
        count = here.sum() if self.options.per == "point" else len(batch.y)
        return self._losses(output, batch).sum() / count

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        """`loss`: nats of a line, the mean over lines (table 5 of Ha, Dai and Le 2017)."""
        return {"loss": self._losses(output.detach(), batch).sum() / len(batch.y)}

    def _losses(self, output: Tensor, batch: Batch) -> Float[Tensor, "batch time"]:
        """Minus log density of each point, 0 in padding; at least in float32."""
        here = ~batch.y[..., 2].isnan()
        said = mixture.mixture(output.to(torch.promote_types(output.dtype, torch.float32)))
        density = mixture.log_density(said, batch.y.nan_to_num().to(said.mean.dtype))
        return -density.where(here, 0.0)

    @property
    def opening(self) -> Float[Tensor, "3"]:
        """What every line begins with: no move."""
        return torch.zeros_like(self.moves[0])

    def draw(
        self, output: Float[Tensor, "batch outputs"], rng: Generator, temperature: float
    ) -> Float[Tensor, "batch 3"]:
        """The next input; temperature 1 / (1 + b) is Graves' bias b (see `mixture.draw`)."""
        return mixture.draw(mixture.mixture(output.float()), rng, temperature)

    def picture(self, points: Float[Tensor, "time 3"]) -> str:
        """Normalised moves as writing: the text of an SVG."""
        return strokes.svg([strokes.Column("", [self._restored(points)])])

    def gallery(self, drawn: Mapping[str, Sequence[Tensor]]) -> str:
        """Titled columns of normalised lines beside the first ones of `valid`: the text of an SVG."""
        count = max(len(lines) for lines in drawn.values())
        columns = [strokes.Column(title, [*map(self._restored, lines)]) for title, lines in drawn.items()]
        return strokes.svg([*columns, strokes.Column("real", self._real(count))])

    def _restored(self, points: Tensor) -> Tensor:
        return torch.cat([points[:, :2] * self.deviation + self.mean, points[:, 2:]], dim=1)

    def _real(self, count: int) -> list[Tensor]:
        rows = self.ranges["valid"][:count]
        return [self.moves[int(self.starts[row]) : int(self.ends[row])] for row in rows]


def _ranges(given: dict[str, range]) -> dict[str, range]:
    """With the halves of `train`."""
    middle = math.ceil(len(given["train"]) / 2)
    return {
        **given,
        "search_train": given["train"][:middle],
        "search_valid": given["train"][middle:],
    }
