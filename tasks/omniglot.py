"""Few-shot classification of handwritten characters."""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F

from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Metrics, Split, TaskSpec
from tasks.config import OmniglotOptions
from tasks.drawings import DRAWERS, SIDE, read_omniglot
from tasks.episodes import EpisodeTask
from tasks.examples import digest

HELD_OUT = 0.2  # of all characters for `valid`, and as many for `test`


class Omniglot(EpisodeTask):
    """Tell `ways` classes apart by `shots` drawings of each (Lake et al. 2015; Vinyals et al. 2016).

    A class is a character or, with `rotations`, a character turned by 0, 90, 180 or 270 degrees; two turns of
    one character may meet in a task. Splits share no character: all are shuffled once, irrespective of their
    alphabet and of the run's seed, the first 60 % are `train`, whose halves are `search_train` and
    `search_valid`, then 20 % `valid` and 20 % `test`. `spec.sizes` counts classes. Letters that look alike in
    two alphabets (Greek and Latin A) are different characters and may lie in different splits.

    x [task example 1 28 28], 1 where there is ink, y [task example]: class by class `shots` drawings each,
    then class by class `queries`, all of a class by different people. Labels are dealt anew in every task.
    """

    images: UInt8[Tensor, "class drawer 1 28 28"]  # in the order of the splits

    def __init__(
        self, options: OmniglotOptions, seed: int, data_dir: Path, download: bool, device: torch.device
    ) -> None:
        super().__init__(options, seed, device)
        drawings = read_omniglot(data_dir, download)
        self.ways, self.shots = options.ways, options.shots
        self.drawn = options.shots + options.queries  # of each class
        turns = 4 if options.rotations else 1
        self.ranges = _ranges(len(drawings), turns)
        self._check()
        order = torch.randperm(len(drawings), generator=generator("omniglot", "split"))
        turned = [drawings[order].rot90(turn, (-2, -1)) for turn in range(turns)]
        self.images = torch.stack(turned, dim=1).flatten(0, 1).unsqueeze(2).to(device)
        self.spec = TaskSpec(
            name=options.name,
            kind="few_shot",
            input_shape=(1, SIDE, SIDE),
            outputs=options.ways,
            sizes={split: len(classes) for split, classes in self.ranges.items()},
            metric="error",
            source="Lake, Salakhutdinov and Tenenbaum 2015: Omniglot, the two small background sets",
            licence="MIT",
            provenance=f"original archives, verified by digest; of 1,623 characters only the {len(drawings)} "
            "of the two small background sets, shrunk by averaging: not comparable",
            digest=digest(drawings),
            support=options.ways * options.shots,
            comparable=False,
        )

    def _check(self) -> None:
        smallest = min(self.ranges, key=lambda split: len(self.ranges[split]))
        if self.ways > len(self.ranges[smallest]):
            raise UserError(
                f"task.ways: got {self.ways}, must be at most {len(self.ranges[smallest])}, the classes of "
                f"omniglot's split {smallest} (task.rotations=true makes four of each character)"
            )
        if self.drawn > DRAWERS:
            raise UserError(
                f"task.shots + task.queries: got {self.drawn}, must be at most {DRAWERS}, the drawings of a "
                "character; lower one of them"
            )

    def draw(self, split: Split, count: int, rng: Generator) -> tuple[Tensor, Tensor]:
        classes = self.ranges[split]
        chosen = torch.rand(count, len(classes), generator=rng).topk(self.ways).indices + classes.start
        drawers = torch.rand(count, self.ways, DRAWERS, generator=rng).topk(self.drawn).indices
        rows = chosen.unsqueeze(-1) * DRAWERS + drawers
        labels = torch.arange(self.ways).view(1, -1, 1).expand_as(rows)
        x = self.images.flatten(0, 1)[self._laid_out(rows).to(self.device)]
        return x.float() / 255, self._laid_out(labels).to(self.device)

    def _laid_out(self, each: Tensor) -> Tensor:
        """[task way drawing] as [task example], support first."""
        return torch.cat([each[..., : self.shots].flatten(1), each[..., self.shots :].flatten(1)], dim=1)

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        return F.cross_entropy(output.flatten(0, -2), batch.y.flatten())

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        output = output.detach()
        wrong = (output.argmax(-1) != batch.y).float().mean()
        return {"loss": self.loss(output, batch), "error": 100 * wrong}


def _ranges(characters: int, turns: int) -> dict[str, range]:
    """Class numbers by split, all turns of a character together."""
    held_out = round(HELD_OUT * characters)
    train = characters - 2 * held_out
    bounds = {
        "train": (0, train),
        "search_train": (0, train // 2),
        "search_valid": (train // 2, train),
        "valid": (train, train + held_out),
        "test": (train + held_out, characters),
    }
    return {split: range(turns * first, turns * last) for split, (first, last) in bounds.items()}
