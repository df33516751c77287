"""The search of DARTS: alpha descends the validation loss, weights the training loss, in turn."""

import copy
import dataclasses
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metalearn.darts.architecture import Architecture, Masks, alpha_optimizer, entropy
from metalearn.darts.config import DartsOptions
from metalearn.darts.monitor import Moment, Monitor, Place
from metalearn.darts.problem import ArchitectureProblem, Mix
from metalearn.darts.refusal import check_joint, check_together, inner_run, required, searchable
from metalearn.darts.result import write_result
from metalearn.darts.selection import Timetable, decide, limited, running
from metalearn.darts.space import Mixture, SearchSpace, running_statistics_kept, set_evaluation
from metalearn.darts.stages import Schedule, check_operations, pruned
from metalearn.darts.stopping import check
from metalearn.darts.streams import Streams
from metalearn.darts.weights import copied, descend, learning_rate, length_factor, means
from metalearn.inner_optimizers import sgd_slots
from metalearn.method import Bilevel, Context, Situation
from metalearn.network import Output
from metalearn.problem import Inner
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.task import Batch, Metrics, Split
from metalearn.tree import Tree, detach, tree_map


class Darts(Bilevel):
    """Alternates a step of alpha on `alpha_split` and a step of the weights on `weight_split`.

    The hypergradient says how alpha's gradient is had: first_order, finite_difference (the paper's second
    order) or unrolled. Texts are read as one sequence by both: hidden states are carried from batch to batch
    and start afresh with each pass over `weight_split`. The test split is never read.
    """

    reads_test = False

    def __init__(self, options: DartsOptions, context: Context) -> None:
        self.hypergradient = required(context.hypergradient)
        self.options, self.task, self.machine = options, context.task, context.machine
        self.seed, self.first_network = context.seed, context.network
        self.streams = Streams(options, context.task)
        self.fused = context.machine.options.fused and not self.hypergradient.differentiates_twice
        network = searchable(context.network())
        check_together(options, context.machine, network)
        check_joint(options, self.hypergradient)
        check(options, network.choices)
        self.timetable = Timetable(options.selection, network, self.seed, context.steps)
        self.schedule = Schedule(options.stages, self.timetable.begin)
        check_operations(options.stages, network.choices)
        self.monitor = Monitor(options, network, self.seed)
        self._start(0, network)

    def _start(self, stage: int, network: SearchSpace) -> None:
        """Begin a stage: a network, its weights, alpha and alpha's optimizer, all afresh."""
        # the old ones go before the new network takes room on the device
        self.network, self.monitor.network, self.inner = network, network, Inner({}, {})
        network.to(self.machine.device)
        network.fused = self.fused
        self.monitor.restart()
        self.stage, self.decided = stage, 0
        self.index = self.schedule.stage(stage).begin  # of the latest step
        self.architecture = Architecture(network.choices, self.options)
        self.allowed: Masks = {kind: choice.allowed for kind, choice in network.choices.items()}
        key = ("stage", stage) if stage else ()
        start = self.architecture.start(generator(self.seed, "alpha", *key))
        self.alpha = {kind: self.machine.put(leaf).requires_grad_() for kind, leaf in start.items()}
        self.alpha_optimizer = alpha_optimizer(self.alpha, self.options)
        self.streams.hidden = {}
        problem = self._problem(self.index)
        rng = generator(self.seed, "hypergradient", *key)
        self.inner = inner_run(self.hypergradient.init(problem, self.alpha, rng))

    def step(self, index: int) -> Metrics:
        """Alpha first, then the weights under the new alpha; or both from where they stand (`joint`)."""
        self._begin(index)
        problem, segment = self._problem(index), self.streams.segment(index)
        metrics: Metrics = {}
        warm = index - self.schedule.at(index).begin >= self.options.warm_up
        if warm and not self.decided:
            rng = generator(self.seed, "hypergradient", index)
            estimate = self.hypergradient.estimate(problem, self.alpha, self.inner, segment, rng)
            for kind, leaf in self.alpha.items():
                leaf.grad = estimate.grad[kind]
            if not self.options.joint:
                self.alpha_optimizer.step()
            metrics = {"search_valid/loss": estimate.loss, **estimate.metrics}
        loss = self._step_weights(problem, segment.inner[0])
        if self.options.joint and metrics:
            self._step_with_the_weights(problem.learning_rate)
        self.streams.carry(problem.states, segment)
        self._watch(index, moving=bool(metrics))
        return {"train/loss": loss, **metrics, **self._entropies(), **self.monitor.metrics()}

    def _begin(self, index: int) -> None:
        """Put the network where this step wants it."""
        stage = self.schedule.at(index)
        if stage.number > self.stage:
            keep = self.options.stages.operations[stage.number - 1]
            self._enter(stage.number, pruned(self._strengths(), self.allowed, keep))
        self.index = index
        self.network.train()
        self.network.progress = stage.progress(index)
        self.network.skip_dropout = self.schedule.skip_dropout(index)
        self.network.drop_path = self.monitor.regularisation.drop_path(self.network.progress)
        self.streams.begin(index)
        self._decide(self.timetable.due(index))

    def _enter(self, stage: int, allowed: Masks) -> None:
        """Begin a stage with a fresh network that holds the allowed operations."""
        if stage == 0:
            return self._start(0, searchable(self.first_network()))
        with seeded(self.seed, "network", "stage", stage):
            network = self.network.restricted(self.options.stages.cells[stage - 1], allowed)
        return self._start(stage, network)

    def _decide(self, due: int) -> None:
        """Take the rounds of decisions that are due; with the first the weights lose their momentum."""
        if due and not self.decided:
            self.inner = Inner(self.inner.params, sgd_slots(self.inner.params))
        for decision in chain(*self.timetable.rounds[self.decided : due]):
            weights = self.architecture.strengths(detach(self.alpha), self._masks())
            self.allowed = decide(decision, self.network.choices, weights, self.allowed, self._judge)
        self.decided = due

    def _judge(self, mixture: Mixture) -> Tensor:
        """Error (texts: loss) and loss of the supernet under a mixture, on first batches of alpha's data."""
        found = self._sweep(lambda _: mixture, self.options.selection.batches)
        return torch.stack([found.get("error", found["loss"]), found["loss"]])

    def _watch(self, index: int, moving: bool) -> None:
        """Measure if it is time, and do what follows from it."""
        if not self.monitor.due(index + 1):
            return
        strengths, weights = self._strengths(), self.inner.params
        verdict = self.monitor.look(
            Moment(index + 1, self._problem(index), self.alpha, weights, strengths, moving, self._place)
        )
        if verdict.back is not None:
            self._return(verdict.back)
        self.ended = verdict.ended

    def situations(self, index: int) -> list[Situation]:
        """One inner step on `weight_split`, scored on `alpha_split`; no stage is begun, no decision taken.

        In plain operations, which any estimator can differentiate, whatever the search's own steps run.
        """
        problem = self._problem(index)
        problem.network = copy.copy(self.network)  # the same modules under a switch of its own
        problem.network.fused = False
        return [Situation(problem, self.alpha, self.inner, self.streams.segment(index))]

    def _step_weights(self, problem: ArchitectureProblem, batch: Batch) -> Tensor:
        """The real step: clipped, with the network's own penalty, and the one that moves the statistics."""
        alpha = detach(self.alpha)
        self.inner, loss = descend(
            problem.options,
            self.task,
            self.inner,
            batch,
            problem.learning_rate,
            lambda params: problem.score(alpha, params, batch),
        )
        return loss

    def evaluate(self, split: Split) -> Metrics:
        """`valid/loss`, `valid/error`: the supernet on the data that alpha learns on, so not held out.

        Batch normalisation uses the batch, for running statistics lag behind an architecture that moves
        (appendix A.1.1), or the running ones as in the authors' code. Beside them, how many edges of the
        genotype that alpha stands for now are skip connections, before `selection.skips` limits them. Raises
        UserError for the test split.
        """
        if split == "test":
            raise UserError("method darts: a search never reads the test split; set train.test=false")
        found = self._sweep()
        skips = self.network.discretise(self._strengths()).skips()
        counts = {f"genotype/skips_{kind}": torch.tensor(float(count)) for kind, count in skips.items()}
        return {f"valid/{quantity}": value for quantity, value in found.items()} | counts

    @torch.no_grad()
    def _sweep(self, mix: Mix | None = None, batches: int | None = None) -> Metrics:
        """The means over alpha's data, or its first `batches`, under the search's mixture or another."""
        problem = self._problem(self.index)
        problem.mix = mix or problem.mix

        def score(batch: Batch, state: Tree) -> Output:
            problem.hidden[batch.key] = state
            return problem.score(self.alpha, self.inner.params, batch)

        set_evaluation(self.network, self.options.evaluation_statistics == "batch")
        with running_statistics_kept(self.network):
            found = means(self.task, islice(self.task.sweep(self.streams.alpha_split), batches), score)
        self.network.train()
        return found

    def state_dict(self) -> dict[str, Any]:
        """What the search learned, its stage and masks, hidden states, measurements."""
        return {
            **self._place(),
            "index": self.index,
            "stage": self.stage,
            "space": copied({kind: choice.allowed for kind, choice in self.network.choices.items()}),
            "allowed": copied(self.allowed),
            "decided": self.decided,
            "hidden": {split: copied(state) for split, state in self.streams.hidden.items()},
            "monitor": self.monitor.state_dict(),
            **({"ended": self.ended} if self.ended else {}),
        }

    def _place(self) -> Place:
        """What the search learned."""
        return {
            "params": copied(self.inner.params),
            "slots": copied(self.inner.slots),
            "buffers": copied(dict(self.network.named_buffers())),
            "alpha": copied(self.alpha),
            "alpha_optimizer": copy.deepcopy(self.alpha_optimizer.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a state of the same search. Alpha stays the tensors that its optimizer holds."""
        if state["stage"] or self.stage:
            self._enter(state["stage"], state["space"])
        put = self.machine.put
        self._return(state)
        self.index, self.allowed, self.decided = state["index"], state["allowed"], state["decided"]
        self.streams.hidden = {split: tree_map(put, hidden) for split, hidden in state["hidden"].items()}
        self.monitor.load_state_dict(state["monitor"])
        self.ended = state.get("ended", "")

    def _return(self, place: Place) -> None:
        """Take up a place, or its alpha alone."""
        with torch.no_grad():
            for kind, leaf in self.alpha.items():
                leaf.copy_(place["alpha"][kind])
            if "params" not in place:
                return
            for key, buffer in self.network.named_buffers():
                buffer.copy_(place["buffers"][key])
        put = self.machine.put
        self.inner = Inner(tree_map(put, place["params"]), tree_map(put, place["slots"]))
        self.alpha_optimizer.load_state_dict(copy.deepcopy(place["alpha_optimizer"]))

    def artifacts(self, folder: Path) -> None:
        """`genotype.json`, `alpha.json`, their pictures, and what the monitor kept."""
        strengths = self._strengths()
        found = limited(self.network, strengths, self.options.selection.skips)
        write_result(folder, self.network, self.alpha, strengths, found)
        self.monitor.history.write(folder, self.network)

    def _step_with_the_weights(self, rate: float) -> None:
        for group in self.alpha_optimizer.param_groups:
            group["lr"] = rate
        self.alpha_optimizer.step()

    def _strengths(self) -> Tree:
        """In double precision, so that close ones are told apart."""
        alpha = {kind: leaf.detach().double().cpu() for kind, leaf in self.alpha.items()}
        return self.architecture.strengths(alpha, self.allowed)

    def _entropies(self) -> Metrics:
        strengths = self.architecture.strengths(detach(self.alpha), self._masks())
        return {f"alpha/entropy_{kind}": entropy(leaf) for kind, leaf in strengths.items()}

    def _masks(self) -> Masks:
        return {kind: self.machine.put(mask) for kind, mask in self.allowed.items()}

    def _problem(self, index: int) -> ArchitectureProblem:
        progress, masks = self.schedule.at(index).progress(index), self._masks()

        def mix(alpha: Tree) -> Mixture:
            if self.decided:
                return Mixture(self.architecture.strengths(alpha, masks), running(self.allowed))
            return self.architecture.mix(alpha, masks, progress)

        def penalty(alpha: Tree) -> Tensor | None:
            return self.architecture.penalty(alpha, masks)

        rate = self._learning_rate(index)
        decay = self.monitor.regularisation.weight_decay(progress)
        options = dataclasses.replace(self.options, weight_decay=decay)
        if self.streams.recurrent:
            rate *= length_factor(self.options, self.streams.train(index))
        hidden = self.streams.states(index)
        return ArchitectureProblem(self.task, self.network, self.machine, options, mix, rate, hidden, penalty)

    def _learning_rate(self, index: int) -> float:
        """A cosine in each stage, and one of its own where perturbation decides."""
        if index >= self.timetable.begin:
            return self.timetable.learning_rate(self.options, self.task, index)
        stage = self.schedule.at(index)
        return learning_rate(self.options, self.task, index - stage.begin, stage.steps)
