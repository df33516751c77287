"""Few-shot regression on sine waves."""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from metalearn.registry import UserError
from metalearn.task import Batch, Metrics, Split, TaskSpec
from tasks.config import SinusoidOptions
from tasks.episodes import EpisodeTask

SPLITS = ("train", "valid", "test", "search_train", "search_valid")
FORMULA = "y = amplitude sin(x - phase)"


class Sinusoid(EpisodeTask):
    """y = amplitude sin(x - phase), all three uniform (Finn et al. 2017, section 5.1).

    x and y [task example 1]; the first `shots` examples of a task are its support. Every split is an endless
    stream of waves of its own, so `spec.sizes` counts the waves of a sweep. The loss is the mean squared
    error over all examples.
    """

    def __init__(
        self,
        options: SinusoidOptions,
        seed: int,
        data_dir: Path,  # noqa: ARG002
        download: bool,  # noqa: ARG002
        device: torch.device,
    ) -> None:
        super().__init__(options, seed, device)
        self.amplitude = _bounds("amplitude", options.amplitude)
        self.phase = _bounds("phase", options.phase)
        self.inputs = _bounds("inputs", options.inputs)
        self.examples = options.shots + options.queries
        self.spec = TaskSpec(
            name=options.name,
            kind="few_shot",
            input_shape=(1,),
            outputs=1,
            sizes=dict.fromkeys(SPLITS, options.evaluated),
            metric="loss",
            source=f"{FORMULA} (Finn et al. 2017, section 5.1)",
            licence="none needed",
            provenance="drawn from the run's seed; waves of a sweep from a fixed one",
            digest=hashlib.sha256(f"{FORMULA} {options}".encode()).hexdigest(),
            support=options.shots,
        )

    def draw(self, split: Split, count: int, rng: Generator) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        amplitude = _uniform((count, 1, 1), self.amplitude, rng)
        phase = _uniform((count, 1, 1), self.phase, rng)
        x = _uniform((count, self.examples, 1), self.inputs, rng)
        return x.to(self.device), (amplitude * torch.sin(x - phase)).to(self.device)

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        return F.mse_loss(output, batch.y)

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        return {"loss": self.loss(output, batch).detach()}


def _bounds(name: str, values: list[float]) -> tuple[float, float]:
    if len(values) != 2 or not values[0] <= values[1]:
        raise UserError(
            f"task.{name}: got {values}, must be the lowest and the highest value, e.g. [0.1,5.0]"
        )
    return values[0], values[1]


def _uniform(shape: tuple[int, ...], bounds: tuple[float, float], rng: Generator) -> Tensor:
    low, high = bounds
    return low + (high - low) * torch.rand(shape, generator=rng)
