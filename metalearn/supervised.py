"""One network on one task by plain backpropagation: baselines, found cells, hypernetworks."""

import dataclasses
import json
import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.averaging import Averaging
from metalearn.machine import full
from metalearn.method import Context, Method
from metalearn.network import Illustrated, OfGenotype, Output, Translator, multiply_adds
from metalearn.options import SupervisedOptions
from metalearn.registry import UserError
from metalearn.rng import seeded
from metalearn.task import PADDING, Batch, Metrics, Split, TaskSpec, Translated
from metalearn.tree import Tree, count, detach


class Supervised(Method):
    """Descends the task's loss with a standard optimizer.

    With `carry`, a recurrent network reads the training text as one long sequence: each batch continues
    from the hidden state of the one before, gradients stop there (truncated backpropagation through time),
    and the state starts afresh with every pass over the text.
    """

    def __init__(self, options: SupervisedOptions, context: Context) -> None:
        if context.hypergradient is not None:
            raise UserError("method supervised uses no hypergradient; set hypergradient=none")
        if context.task.spec.kind == "few_shot":
            raise UserError(
                f"method supervised: task {context.task.spec.name} is a few_shot; choose method=maml "
                "(method.inner_steps=0 trains one network on all tasks) or a task of another kind"
            )
        _check_kind(options, context.task.spec)
        _check_schedule(options)
        self.options, self.task, self.machine = options, context.task, context.machine
        self.steps = context.steps
        self.network = context.network()
        self.network.fused = context.machine.options.fused
        if context.machine.options.compile:
            _check_compiled(self.network)
        self.forward = context.machine.compile(self.network)
        self.optimizer = _optimizer(options, self.network)
        self.averaging = Averaging(self.network.parameters(), options.patience)
        self.hidden: Tree = {}

    def step(self, index: int) -> Metrics:
        batch = self.task.batch("train", index)
        carried = self.options.carry and self.task.spec.kind == "language_model"
        if index % self.task.batches("train") == 0 or not carried:
            self.hidden = {}
        self._judge(index)
        self._schedule(index, batch)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with seeded(*batch.key), self.machine.autocast():
            output = self.forward(batch.x, self.hidden or None)
        logits = full(output.logits)
        self._loss(output, logits, batch).backward()
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip)
        self.optimizer.step()
        self.averaging.update()
        self.hidden = detach(output.state) if carried else {}
        return _named("train", self.task.metrics(logits.detach(), batch))

    def _loss(self, output: Output, logits: Tensor, batch: Batch) -> Tensor:
        """What training descends: the task's loss on smoothed labels, an auxiliary head's, the penalty."""
        loss = self._task_loss(logits, batch)
        if output.auxiliary is not None:
            loss = loss + self.options.auxiliary_weight * self._task_loss(full(output.auxiliary), batch)
        return loss if output.penalty is None else loss + output.penalty

    def _task_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        smoothing = self.options.label_smoothing
        if not smoothing:
            return self.task.loss(logits, batch)
        return F.cross_entropy(logits, batch.y, label_smoothing=smoothing)

    def _judge(self, index: int) -> None:
        """nt_asgd: after an epoch, its validation loss decides whether averaging begins, so on the host."""
        ended = index > 0 and index % self.task.batches("train") == 0
        if self.options.optimizer == "nt_asgd" and ended and not self.averaging.begun:
            self.averaging.judge(self.evaluate("valid")["valid/loss"].item())

    def _schedule(self, index: int, batch: Batch) -> None:
        """Set progress and learning rate for this step: functions of the index and the batch's length."""
        period = self.task.batches("train") if self.options.schedule_every == "epoch" else 1
        self.network.progress = (index // period) / max(1, self.steps / period)
        rate = self._rate(index // period)
        if self.options.nominal_time is not None:
            rate *= batch.x.shape[1] / self.options.nominal_time
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _rate(self, period: int) -> float:
        """The learning rate in a period, a step or an epoch, of the schedule."""
        options = self.options
        if options.schedule == "none":
            return options.learning_rate
        if options.schedule == "exponential":
            return options.learning_rate * options.decay**period
        if options.schedule == "steps":
            return [options.learning_rate, *options.rates][bisect_right(options.milestones, period)]
        start, end = options.learning_rate, options.final_learning_rate
        return end + (start - end) * (1 + math.cos(math.pi * self.network.progress)) / 2

    @torch.no_grad()
    def evaluate(self, split: Split) -> Metrics:
        """Means over all targets of the split; language models read it as one text, state carried.

        With averaged weights where averaging has begun.
        """
        self.network.eval()
        with self.averaging.averaged():
            metrics = _sweep(self._score, self.task.sweep(split), self.task.spec.kind)
            metrics |= self._answers(split)
        if self.task.spec.metric == "perplexity":
            metrics["perplexity"] = metrics["loss"].exp()  # of the mean, not the mean of batches'
        return _named(split, metrics)

    def _answers(self, split: Split) -> Metrics:
        """What whole translations are worth, on the test split: they take long to find."""
        task, network = self.task, self.network
        if split != "test" or not isinstance(task, Translated) or not isinstance(network, Translator):
            return {}
        batches = list(task.sweep(split))
        answers = [answer for batch in batches for answer in network.translate(batch.x[:, 0])]
        return task.score(batches, answers)

    def _score(self, batch: Batch, state: Tree) -> tuple[Metrics, Tree]:
        with seeded(*batch.key), self.machine.autocast():  # a cell may have operations that draw noise
            output = self.forward(batch.x, state or None)
        return self.task.metrics(full(output.logits), batch), output.state

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "network": dict(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "hidden": self.hidden,
        }
        if self.options.optimizer == "nt_asgd":
            state["averaging"] = self.averaging.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hidden = {key: self.machine.put(leaf) for key, leaf in state["hidden"].items()}
        if self.options.optimizer == "nt_asgd":
            self.averaging.load_state_dict(state["averaging"], self.machine.put)

    def artifacts(self, folder: Path) -> None:
        """`weights.safetensors` (averaged where that has begun, shared tensors once), `summary.json`, and
        where the network has them `genotype.json` and its own pictures.
        """
        with self.averaging.averaged():
            save_model(self.network, str(folder / "weights.safetensors"))
        if isinstance(self.network, OfGenotype):
            (folder / "genotype.json").write_text(self.network.genotype.to_json(), encoding="utf-8")
        if isinstance(self.network, Illustrated):
            self.network.eval()
            with self.averaging.averaged(), torch.no_grad():
                self.network.illustrate(self.task, folder)
        named = list(self.network.named_parameters())
        summary = {
            "network": type(self.network).__name__,
            "parameters": count(leaf for name, leaf in named if "auxiliary" not in name),  # as papers count
            "auxiliary_parameters": count(leaf for name, leaf in named if "auxiliary" in name),
            "task": dataclasses.asdict(self.task.spec),
        }
        if self.task.spec.kind == "classification":
            summary["multiply_adds"] = multiply_adds(self.network, self.task.spec.input_shape)
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _sweep(score: Callable[[Batch, Tree], tuple[Metrics, Tree]], batches: Any, kind: str) -> Metrics:
    """Mean metrics, weighted by the number of targets; hidden state goes from batch to batch."""
    sums: dict[str, Tensor] = {}
    total, state = 0, {}
    for batch in batches:
        metrics, last = score(batch, state)
        state = last if kind == "language_model" else {}
        weight = _targets(batch, kind)
        total += weight
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + weight * value.double()
    return {key: (value / total).float() for key, value in sums.items()}


def _targets(batch: Batch, kind: str) -> int:
    """What the means of a batch's metrics are over: sequences of handwriting, symbols of translations."""
    if kind == "translation":
        return int((batch.y != PADDING).sum())
    return batch.y.numel() if kind == "language_model" else batch.y.shape[0]


def _named(split: str, metrics: Metrics) -> Metrics:
    return {f"{split}/{quantity}": value for quantity, value in metrics.items()}


def _optimizer(options: SupervisedOptions, network: nn.Module) -> torch.optim.Optimizer:
    """The fused kernels: one pass over memory a step, the same bits at each run."""
    common: dict[str, Any] = {"lr": options.learning_rate, "fused": True}
    groups = _groups(options, network)
    if options.optimizer in ("sgd", "nt_asgd"):
        return torch.optim.SGD(groups, momentum=options.momentum, nesterov=options.nesterov, **common)
    if len(options.betas) != 2:
        raise UserError(f"method.betas: got {options.betas}, must be two numbers, e.g. [0.9,0.999]")
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, betas=(options.betas[0], options.betas[1]), **common)


def _groups(options: SupervisedOptions, network: nn.Module) -> list[dict[str, Any]]:
    """What decays, and with `weight_decay_of` kernels what does not: all of one dimension or none."""
    leaves, decay = list(network.parameters()), options.weight_decay
    if options.weight_decay_of == "all":
        return [{"params": leaves, "weight_decay": decay}]
    kernels, others = [p for p in leaves if p.dim() > 1], [p for p in leaves if p.dim() <= 1]
    return [{"params": kernels, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]


def _check_kind(options: SupervisedOptions, spec: TaskSpec) -> None:
    """Refuse what the task's kind has not."""
    if options.label_smoothing and spec.kind != "classification":
        raise UserError(
            f"method.label_smoothing: got {options.label_smoothing} with task {spec.name}, a {spec.kind}; "
            "only classification has labels to smooth: set it to 0"
        )
    if options.nominal_time is not None and spec.kind != "language_model":
        raise UserError(
            f"method.nominal_time: got {options.nominal_time} with task {spec.name}, a {spec.kind}; "
            "only texts have a length: set it to null"
        )


def _check_schedule(options: SupervisedOptions) -> None:
    """Refuse milestones that are none, and a momentum that cannot look ahead."""
    milestones, rates = options.milestones, options.rates
    if options.schedule == "steps" and not (milestones and len(milestones) == len(rates)):
        raise UserError(
            f"method.milestones: got {milestones} and method.rates {rates}; schedule=steps takes at least "
            "one milestone and a rate for each milestone, e.g. milestones=[28000,56000] rates=[0.02,0.004]"
        )
    if options.schedule != "steps" and (milestones or rates):
        raise UserError(
            f"method.milestones: got {milestones} and method.rates {rates} with schedule={options.schedule}, "
            "which heeds neither: set method.schedule=steps, or both to []"
        )
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        raise UserError(f"method.milestones: got {milestones}, must rise, e.g. [28000,56000]")
    if options.nesterov and (options.optimizer not in ("sgd", "nt_asgd") or options.momentum == 0):
        raise UserError(
            f"method.nesterov: got true with optimizer {options.optimizer} and momentum {options.momentum}; "
            "only sgd and nt_asgd with a momentum above 0 look ahead: set it to false, or those"
        )


def _check_compiled(network: nn.Module) -> None:
    """Refuse drop path under torch.compile: its probability moves at every step, and so would the program."""
    drop = getattr(network, "drop_path", 0.0)
    if drop:
        raise UserError(
            f"machine.compile: got true with network.drop_path={drop}, which would be compiled anew at every "
            "step; set machine.compile=false or network.drop_path=0"
        )
