"""Random search with shared weights (Li and Talwalkar 2019, arXiv:1902.07638, section 3; from memory)."""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from metalearn.darts.config import RandomSearchOptions
from metalearn.darts.genotype import AnyGenotype
from metalearn.darts.refusal import searchable
from metalearn.darts.result import write_genotype
from metalearn.darts.space import Mixture, one_path, running_statistics_kept, set_evaluation
from metalearn.darts.weights import copied, descend, learning_rate, length_factor, means
from metalearn.inner_optimizers import sgd_slots
from metalearn.machine import full
from metalearn.method import Context, Method
from metalearn.network import Output
from metalearn.problem import Inner
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Metrics, Split
from metalearn.tree import Tree, detach, tree_map


class RandomSearch(Method):
    """Trains the weights of a supernet along random paths, then takes the best of random architectures.

    Each step draws one architecture and trains its weights on `weight_split`. After the last step
    `candidates` are drawn and scored with the shared weights on the first `batches` of a sweep over
    `score_split`; the lowest error, of texts loss, wins, of equals the one drawn first. The test split is
    never read.
    """

    reads_test = False

    def __init__(self, options: RandomSearchOptions, context: Context) -> None:
        if context.hypergradient is not None:
            raise UserError("method darts_random_search uses no hypergradient; set hypergradient=none")
        self.options, self.task, self.machine = options, context.task, context.machine
        self.seed, self.steps = context.seed, context.steps
        self.network = searchable(context.network())
        self.network.fused = context.machine.options.fused
        params = {key: leaf.detach().clone() for key, leaf in self.network.named_parameters()}
        self.inner = Inner(params, sgd_slots(params))
        self.hidden: Tree = {}  # of recurrent networks
        self.winner: int | None = None  # the number of the best candidate, once they are scored

    def step(self, index: int) -> Metrics:
        """One random path's weights; after the last one the candidates' scores."""
        self.network.train()
        self.network.progress = index / self.steps
        batch = self.task.batch(self._weight_split, index)
        if index % self.task.batches(self._weight_split) == 0:
            self.hidden = {}
        rate = learning_rate(self.options, self.task, index, self.steps)
        if self.task.spec.kind == "language_model":
            rate *= length_factor(self.options, batch)
        mixture, state = self._mixture(self._draw("path", index)), self.hidden
        carried: Tree = {}

        def score(params: Tree) -> Output:
            nonlocal carried
            output = self._score(params, batch, state, mixture)
            carried = detach(output.state)
            return output

        self.inner, loss = descend(self.options, self.task, self.inner, batch, rate, score)
        self.hidden = carried
        return {"train/loss": loss, **(self._choose() if index == self.steps - 1 else {})}

    def _choose(self) -> Metrics:
        scores = self._scores(self.options.batches)
        values = scores.tolist()  # the host decides
        self.winner = min(range(len(values)), key=values.__getitem__)
        return {"search_valid/best": scores.min(), "search_valid/mean": scores.mean()}

    def _scores(self, batches: int) -> Tensor:
        """Of every candidate the error, of texts the loss."""
        scores = []
        for number in range(self.options.candidates):
            found = self._means(self._candidate(number), batches)
            scores.append(found.get("error", found["loss"]))
        return torch.stack(scores)

    @torch.no_grad()
    def _means(self, genotype: AnyGenotype, batches: int) -> Metrics:
        mixture = self._mixture(genotype)

        def score(batch: Batch, state: Tree) -> Output:
            return self._score(self.inner.params, batch, state, mixture)

        set_evaluation(self.network, batch_statistics=True)
        with running_statistics_kept(self.network):
            found = means(self.task, islice(self.task.sweep(self._score_split), batches), score)
        self.network.train()
        return found

    def _score(self, params: Tree, batch: Batch, state: Tree, mixture: Mixture) -> Output:
        with seeded(*batch.key), self.machine.autocast():
            arguments = (batch.x, state or None)
            output = functional_call(self.network, params, arguments, {"mixture": mixture})
        return output._replace(logits=full(output.logits))

    def _mixture(self, genotype: AnyGenotype) -> Mixture:
        masks = self.network.encode(genotype)
        return one_path(masks, next(iter(self.inner.params.values())))

    def _draw(self, *key: str | int) -> AnyGenotype:
        return self.network.sample(generator(self.seed, "random_search", *key))

    def _candidate(self, number: int) -> AnyGenotype:
        return self._draw("candidate", number)

    def evaluate(self, split: Split) -> Metrics:
        """Means over all candidates, each on the first batch of `score_split`: how good a random path is.

        Raises UserError for the test split.
        """
        if split == "test":
            raise UserError(
                "method darts_random_search: a search never reads the test split; set train.test=false"
            )
        found = [self._means(self._candidate(number), 1) for number in range(self.options.candidates)]
        return {f"valid/{name}": torch.stack([one[name] for one in found]).mean() for name in found[0]}

    def state_dict(self) -> dict[str, Any]:
        """Weights, momenta, running statistics, hidden states, and which candidate won."""
        return {
            "params": copied(self.inner.params),
            "slots": copied(self.inner.slots),
            "buffers": copied(dict(self.network.named_buffers())),
            "hidden": copied(self.hidden),
            "winner": self.winner,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of the same network."""
        put = self.machine.put
        self.inner = Inner(tree_map(put, state["params"]), tree_map(put, state["slots"]))
        self.hidden = {key: put(leaf) for key, leaf in state["hidden"].items()}
        self.winner = state["winner"]
        with torch.no_grad():
            for key, buffer in self.network.named_buffers():
                buffer.copy_(state["buffers"][key])

    def artifacts(self, folder: Path) -> None:
        """`genotype.json` and pictures of the best candidate."""
        if self.winner is None:  # train.minutes ended the run before its last step
            self._choose()
        write_genotype(folder, self._candidate(self.winner or 0))

    @property
    def _weight_split(self) -> Split:
        return self.options.weight_split  # type: ignore[return-value]

    @property
    def _score_split(self) -> Split:
        return self.options.score_split  # type: ignore[return-value]
