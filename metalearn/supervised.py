"""One network on one task by plain backpropagation: baselines, found cells, hypernetworks."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn import functional as F

from metalearn.machine import full
from metalearn.method import Context, Method
from metalearn.network import Output
from metalearn.options import SupervisedOptions
from metalearn.registry import UserError
from metalearn.rng import seeded
from metalearn.task import Batch, Metrics, Split
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
        if options.label_smoothing and context.task.spec.kind != "classification":
            raise UserError(
                f"method.label_smoothing: got {options.label_smoothing} with task {context.task.spec.name}, "
                f"a {context.task.spec.kind}; only classification has labels to smooth: set it to 0"
            )
        self.options, self.task, self.machine = options, context.task, context.machine
        self.steps = context.steps
        self.network = context.network()
        if context.machine.options.compile:
            _check_compiled(self.network)
        self.forward = context.machine.compile(self.network)
        self.optimizer = _optimizer(options, self.network)
        self.hidden: Tree = {}

    def step(self, index: int) -> Metrics:
        batch = self.task.batch("train", index)
        if index % self.task.batches("train") == 0 or not self.options.carry:
            self.hidden = {}
        self._schedule(index)
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with seeded(*batch.key), self.machine.autocast():
            output = self.forward(batch.x, self.hidden or None)
        logits = full(output.logits)
        self._loss(output, logits, batch).backward()
        if self.options.clip is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.options.clip)
        self.optimizer.step()
        self.hidden = detach(output.state)
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

    def _schedule(self, index: int) -> None:
        """Set progress and learning rate for this step: functions of the index alone."""
        self.network.progress = index / self.steps
        options = self.options
        if options.schedule == "none":
            return
        period = self.task.batches("train") if options.schedule_every == "epoch" else 1
        if options.schedule == "cosine":
            end = options.final_learning_rate
            progress = (index // period) / max(1, self.steps / period)
            rate = end + (options.learning_rate - end) * (1 + math.cos(math.pi * progress)) / 2
        else:
            rate = options.learning_rate * options.decay ** (index // period)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def evaluate(self, split: Split) -> Metrics:
        """Means over all targets of the split; language models read it as one text, state carried."""
        self.network.eval()
        metrics = _sweep(self._score, self.task.sweep(split), self.task.spec.kind)
        if self.task.spec.metric == "perplexity":
            metrics["perplexity"] = metrics["loss"].exp()  # of the mean, not the mean of batches'
        return _named(split, metrics)

    def _score(self, batch: Batch, state: Tree) -> tuple[Metrics, Tree]:
        with self.machine.autocast():
            output = self.forward(batch.x, state or None)
        return self.task.metrics(full(output.logits), batch), output.state

    def state_dict(self) -> dict[str, Any]:
        return {
            "network": dict(self.network.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "hidden": self.hidden,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hidden = {key: self.machine.put(leaf) for key, leaf in state["hidden"].items()}

    def artifacts(self, folder: Path) -> None:
        """`weights.safetensors` (shared tensors once) and `summary.json`."""
        save_model(self.network, str(folder / "weights.safetensors"))
        named = list(self.network.named_parameters())
        summary = {
            "network": type(self.network).__name__,
            "parameters": count(leaf for name, leaf in named if "auxiliary" not in name),  # as papers count
            "auxiliary_parameters": count(leaf for name, leaf in named if "auxiliary" in name),
            "task": dataclasses.asdict(self.task.spec),
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _sweep(score: Callable[[Batch, Tree], tuple[Metrics, Tree]], batches: Any, kind: str) -> Metrics:
    """Mean metrics, weighted by the number of targets; hidden state goes from batch to batch."""
    sums: dict[str, Tensor] = {}
    total, state = 0, {}
    for batch in batches:
        metrics, state = score(batch, state)
        weight = batch.y.numel() if kind == "language_model" else batch.y.shape[0]
        total += weight
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + weight * value.double()
    return {key: (value / total).float() for key, value in sums.items()}


def _named(split: str, metrics: Metrics) -> Metrics:
    return {f"{split}/{quantity}": value for quantity, value in metrics.items()}


def _optimizer(options: SupervisedOptions, network: nn.Module) -> torch.optim.Optimizer:
    """The fused kernels: one pass over memory a step, the same bits at each run."""
    common: dict[str, Any] = {
        "lr": options.learning_rate,
        "weight_decay": options.weight_decay,
        "fused": True,
    }
    if options.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), momentum=options.momentum, **common)
    if len(options.betas) != 2:
        raise UserError(f"method.betas: got {options.betas}, must be two numbers, e.g. [0.9,0.999]")
    kind = torch.optim.Adam if options.optimizer == "adam" else torch.optim.AdamW
    return kind(network.parameters(), betas=(options.betas[0], options.betas[1]), **common)


def _check_compiled(network: nn.Module) -> None:
    """Refuse drop path under torch.compile: its probability moves at every step, and so would the program."""
    drop = getattr(network, "drop_path", 0.0)
    if drop:
        raise UserError(
            f"machine.compile: got true with network.drop_path={drop}, which would be compiled anew at every "
            "step; set machine.compile=false or network.drop_path=0"
        )
