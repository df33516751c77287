"""A trained optimizer as a `torch.optim.Optimizer`, for a user's own loop."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.learned_optimizers.slots import Place, kept, memory_per_parameter, places
from metalearn.learned_optimizers.stored import PRETRAINED, load
from metalearn.problem import Inner
from metalearn.registry import UserError
from metalearn.tree import Tree, detach

Group = dict[str, Any]
Factory = Callable[..., "LearnedOptimizer"]


class LearnedOptimizer(torch.optim.Optimizer):
    """A frozen learned rule over all tensors of a group at once.

    `LearnedOptimizer.from_run(path)(model.named_parameters())`. Each group may have its own `lr`, that
    multiplies the rule's updates (1.0: as it was trained) and that schedulers change, `weight_decay`,
    decoupled: parameters shrink by lr * weight_decay a step, and `maximize`.

    Tensors of a group on one device and in one precision that get their first gradient at the same step make
    up one batch, whose memory is `state[its first tensor]["slots"]`. Bfloat16 and float16 are reckoned in
    float32. A tensor that later is without a gradient stays where it is and keeps its memory; the rule sees
    a gradient of zeros there.

    It takes `memory_per_parameter` bytes of memory for each parameter. Raises UserError for complex
    parameters and sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[Any],
        rule: UpdateRule,
        meta: Tree,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ) -> None:
        self.rule, self.meta = rule, detach(meta)
        self._forget()
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize})

    @classmethod
    def from_run(cls, path: str | Path) -> Factory:
        """What makes optimizers of a trained rule: `from_run(path)(params, lr=1.0, weight_decay=0.0)`.

        `path`: a run directory of `learned_optimizer`, or an export of one. Raises UserError.
        """
        rule, meta = load(path)
        return functools.partial(cls, rule=rule, meta=meta)

    @classmethod
    def pretrained(cls) -> Factory:
        """The same of the optimizer that comes with this package. Raises UserError."""
        return cls.from_run(PRETRAINED)

    @property
    def memory_per_parameter(self) -> float:
        """Bytes of the rule's memory for each parameter of float32, beside the parameter and its gradient."""
        return memory_per_parameter(self.rule)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group; what `closure`, which recomputes the loss and its gradients, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        batches = [(group, first) for group in self.param_groups for first in self._batches(group)]
        for group, first in batches:
            self._move(group, first)
        return loss

    def add_param_group(self, param_group: Group) -> None:
        """Add tensors with options of their own. Raises UserError."""
        super().add_param_group(param_group)
        try:
            _check(param_group)
        except UserError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave, bit for bit. Raises UserError for another rule's or model's."""
        seen: list[dict[str, Any]] = []

        def inspect(_: torch.optim.Optimizer, given: dict[str, Any]) -> None:
            self._check_state(given)
            seen.append(given)

        with self.register_load_state_dict_pre_hook(inspect):  # it comes after the user's own hooks
            super().load_state_dict(state_dict)
        given = seen[0]
        for saved, group in zip(given["param_groups"], self.param_groups, strict=True):
            for name, tensor in zip(saved["params"], group["params"], strict=True):
                if given["state"].get(name):  # torch has cast the slots to the tensor's type
                    slots = given["state"][name]["slots"]
                    self.state[tensor]["slots"] = {key: leaf.to(tensor.device) for key, leaf in slots.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "rule": self.rule, "meta": self.meta}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def _forget(self) -> None:
        """Drop what is made anew from groups and states when it is needed."""
        self._layouts: dict[Tensor, Layout] = {}  # of batches, by their first tensor
        self._places: dict[Tensor, dict[str, Place]] = {}
        self._metas: dict[tuple[torch.device, torch.dtype], Tree] = {}

    def _batches(self, group: Group) -> list[Tensor]:
        """The first tensor of each batch of a group; tensors with their first gradient open new ones."""
        tensors = group["params"]
        there = [tensor for tensor in tensors if self.state.get(tensor)]
        known = {place for first in there for place in self.state[first]["members"]}
        fresh: dict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
        for place, tensor in enumerate(tensors):
            if tensor.grad is None or not tensor.numel():
                continue
            _refuse_sparse(tensor.grad)
            if place not in known:
                fresh[tensor.device, _working(tensor)].append(place)
        return there + [self._opened(group, members) for members in fresh.values()]

    def _opened(self, group: Group, members: list[int]) -> Tensor:
        """The first tensor of a new batch."""
        tensors = [group["params"][place] for place in members]
        slots = self.rule.slots(_flat(tensors, _working(tensors[0])), self._layout(group, members))
        self.state[tensors[0]] = {"members": members, "slots": slots}
        self.state |= {tensor: {} for tensor in tensors[1:]}  # torch's distributed checkpoints want one each
        return tensors[0]

    def _move(self, group: Group, first: Tensor) -> None:
        """One step of a batch: one call of the rule, one addition to all of its tensors."""
        state, dtype = self.state[first], _working(first)
        tensors = [group["params"][place] for place in state["members"]]
        present = [tensor.grad is not None for tensor in tensors]
        if not any(present):
            return
        layout, before = self._layout(group, state["members"]), state["slots"]
        theta, grads = _flat(tensors, dtype), _flat([_gradient(tensor) for tensor in tensors], dtype)
        grads = -grads if group["maximize"] else grads
        inner, meta = Inner({"theta": theta}, before), self._meta(first.device, dtype)
        with torch.autocast(first.device.type, enabled=False):
            after = self.rule.update(meta, inner, {"theta": grads}, layout)
        change = after.params["theta"] - theta
        if group["weight_decay"]:
            change -= group["weight_decay"] * theta
        parts = list(layout.unflatten((change * group["lr"])[0]).values())
        slots = after.slots
        if not all(present):
            slots = kept(self._placed(first, layout), before, slots, present)
            tensors, parts = _where(present, tensors), _where(present, parts)
        self.state[first] = {**state, "slots": slots}  # anew: a state_dict of before stays as it was
        torch._foreach_add_(tensors, parts)

    def _layout(self, group: Group, members: Sequence[int]) -> Layout:
        """Where a batch's tensors lie, under the names that were given with them."""
        first = group["params"][members[0]]
        if first not in self._layouts:
            names = group.get("param_names") or [str(place) for place in range(len(group["params"]))]
            shapes = {names[place]: group["params"][place].shape for place in members}
            self._layouts[first] = Layout(shapes, first.device)
        return self._layouts[first]

    def _placed(self, first: Tensor, layout: Layout) -> dict[str, Place]:
        if first not in self._places:
            self._places[first] = places(self.rule, layout)
        return self._places[first]

    def _meta(self, device: torch.device, dtype: torch.dtype) -> Tree:
        if (device, dtype) not in self._metas:
            self._metas[device, dtype] = {key: leaf.to(device, dtype) for key, leaf in self.meta.items()}
        return self._metas[device, dtype]

    def _check_state(self, given: dict[str, Any]) -> None:
        """Refuse a state that another rule or another model has made."""
        for saved, group in zip(given["param_groups"], self.param_groups, strict=False):
            if len(saved["params"]) != len(group["params"]):
                return  # torch refuses it
            for name in saved["params"]:
                if given["state"].get(name):
                    self._check_batch(given["state"][name], group)

    def _check_batch(self, state: dict[str, Any], group: Group) -> None:
        tensors = [group["params"][place] for place in state.get("members", [0])]
        layout = Layout({str(place): leaf.shape for place, leaf in enumerate(tensors)}, tensors[0].device)
        fresh = self.rule.slots(_flat(tensors, _working(tensors[0])), layout)
        wanted = {name: list(leaf.shape) for name, leaf in fresh.items()}
        found = {name: list(leaf.shape) for name, leaf in state.get("slots", {}).items()}
        if found != wanted:
            raise UserError(
                f"load_state_dict: got {_shown(found)}; this rule and model have {_shown(wanted)}: load a "
                "state of the same rule on the same model"
            )


def _shown(shapes: dict[str, list[int]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "no slots"


def _check(group: Group) -> None:
    for tensor in group["params"]:
        if not tensor.is_floating_point():
            raise UserError(
                f"LearnedOptimizer: got a parameter of {tensor.dtype}; the rule is about real numbers: "
                "optimize torch.view_as_real of it, or give it to an optimizer of torch.optim"
            )
    names = group.get("param_names", [])
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"LearnedOptimizer: two parameters of a group are named {twice!r}; make names differ")
    for option in ("lr", "weight_decay"):
        if not group[option] >= 0:
            raise UserError(f"LearnedOptimizer: got {option}={group[option]}, must be at least 0")


def _refuse_sparse(gradient: Tensor) -> None:
    if gradient.layout != torch.strided:
        raise UserError(
            f"LearnedOptimizer: got a sparse gradient of shape {list(gradient.shape)}; build the embedding "
            "with sparse=False, or give it to torch.optim.SparseAdam"
        )


def _working(tensor: Tensor) -> torch.dtype:
    """What a tensor is reckoned in."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _gradient(tensor: Tensor) -> Tensor:
    """A tensor's gradient, zeros where it has none."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _flat(tensors: Sequence[Tensor], dtype: torch.dtype) -> Float[Tensor, "1 coordinates"]:
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).to(dtype).unsqueeze(0)


def _where(present: Sequence[bool], tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor for tensor, there in zip(tensors, present, strict=True) if there]
