"""What a search reads: batches for the weights and for alpha, and hidden states along texts."""

import math

from metalearn.darts.config import DartsOptions
from metalearn.hypergradient.base import Segment
from metalearn.registry import UserError
from metalearn.rng import Key
from metalearn.task import Batch, Split, Task
from metalearn.tree import Tree


class Streams:
    """Batches of two splits by the index of the step; of texts, the states that the next ones start from.

    Raises UserError for texts that are to be reshuffled: they would begin anew at each step.
    """

    def __init__(self, options: DartsOptions, task: Task) -> None:
        self.task, self.fresh = task, options.valid_batches == "fresh"
        self.joint = options.joint  # alpha learns on the weights' own batch
        self.weight_split: Split = options.weight_split  # type: ignore[assignment]
        self.alpha_split: Split = options.alpha_split  # type: ignore[assignment]
        self.recurrent = task.spec.kind == "language_model"
        if self.recurrent and self.fresh:
            raise UserError(
                f"method.valid_batches: got fresh with task {task.spec.name}, a text, which is read in "
                "order; set method.valid_batches=stream"
            )
        self.hidden: dict[str, Tree] = {}  # by split, of recurrent networks

    def begin(self, index: int) -> None:
        """Forget the states where a pass over the weights' split begins."""
        if index % self.task.batches(self.weight_split) == 0:
            self.hidden = {}

    def train(self, index: int) -> Batch:
        """The weights' batch."""
        return self.task.batch(self.weight_split, index)

    def valid(self, index: int) -> Batch:
        """Alpha's; "fresh": the first batch of a new shuffle at each step, so the half is not swept in order.

        The stream of a text starts again with each pass over `weight_split`, as the hidden states do.
        """
        length = self.task.batches(self.alpha_split)
        if self.fresh:
            index *= length
        elif self.recurrent:
            done, place = divmod(index, self.task.batches(self.weight_split))
            index = done * length * math.ceil(self.task.batches(self.weight_split) / length) + place
        return self.task.batch(self.alpha_split, index)

    def segment(self, index: int) -> Segment:
        """One inner step, scored after it."""
        train = self.train(index)
        return Segment([train], {1: train if self.joint else self.valid(index)})

    def states(self, index: int) -> dict[tuple[Key, ...], Tree]:
        """What the step's batches start from, by their keys."""
        if not self.hidden:
            return {}
        keys = {self.weight_split: self.train(index).key, self.alpha_split: self.valid(index).key}
        return {keys[split]: state for split, state in self.hidden.items()}  # type: ignore[index]

    def carry(self, states: dict[tuple[Key, ...], Tree], segment: Segment) -> None:
        """Keep the states that the next batches start from: those of the last pass over each."""
        batches = {self.weight_split: segment.inner[0], self.alpha_split: segment.outer[1]}
        self.hidden |= {split: states[batch.key] for split, batch in batches.items() if batch.key in states}
