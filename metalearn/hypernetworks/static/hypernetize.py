"""Any module with some of its parameters made by a generator instead of kept."""

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from metalearn.hypernetworks.static.chunked import Chunked
from metalearn.hypernetworks.static.config import GeneratorOptions
from metalearn.hypernetworks.static.coordinate import Coordinate
from metalearn.hypernetworks.static.generator import Condition, Generator, Target
from metalearn.hypernetworks.static.kept import Kept
from metalearn.hypernetworks.static.layer_embedding import LayerEmbedding
from metalearn.registry import UserError
from metalearn.tree import Tree

KINDS = {  # what `generates` may name: kinds of targets
    "convolutions": ("convolution",),
    "linears": ("linear",),
    "biases": ("bias",),
    "batch_norms": ("gain", "shift"),
}


class Hypernetwork(nn.Module):
    """`module` with generated parameters: made once a call, by plain operations, differentiable twice.

    In evaluation without gradients they are kept until the generator's parameters change: in place, by
    `load_state_dict`, by a move, by an optimizer, or until `train` or `eval` is called. (What this cannot see
    is `parameter.data` written to in place between two calls in evaluation.)
    """

    def __init__(self, module: nn.Module, generator: Generator) -> None:
        super().__init__()
        self.module, self.generator = module, generator
        self._kept = Kept()

    def forward(self, *inputs: Any, condition: Condition = None, **named: Any) -> Any:
        return self.call(self.weights(condition), *inputs, **named)

    def call(self, weights: Tree, *inputs: Any, **named: Any) -> Any:
        """The module's answer with `weights`, which `weights()` has made: once for several calls."""
        return functional_call(self.module, dict(weights), inputs, named)

    def weights(self, condition: Condition = None) -> Tree:
        """The generated parameters by name; in the generator's own precision under autocast, too."""
        if isinstance(condition, Tensor) or not self._keeps():
            return self._made(condition)
        return self._kept.take(condition, self.generator.parameters(), lambda: self._made(condition))

    def train(self, mode: bool = True) -> "Hypernetwork":
        """As any module's; what was kept is forgotten."""
        self._kept.clear()
        super().train(mode)
        return self

    def _made(self, condition: Condition) -> Tree:
        device = next(self.generator.parameters()).device.type
        if not torch.is_autocast_enabled(device):
            return self.generator(condition)
        with torch.autocast(device, enabled=False):
            return self.generator(condition)

    def _keeps(self) -> bool:
        """Whether nothing is differentiated, traced or put in a parameter's place (by `functional_call`)."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return all(
            type(parameter) is nn.Parameter and not parameter.is_inference()
            for parameter in self.generator.parameters()
        )


def hypernetize(
    module: nn.Module,
    generator: Callable[[Sequence[Target]], Generator] | GeneratorOptions,
    choose: Callable[[Target], bool],
) -> Hypernetwork:
    """Take the chosen parameters out of `module`, which is changed, and have them generated.

    `generator` is a factory, or options for one. The start of the removed parameters tells it theirs.
    Raises UserError if nothing is chosen, or a chosen parameter has two names (tied weights, a submodule
    registered twice: `functional_call` would corrupt it) or is a recurrent module's (it keeps copies).
    """
    targets = [target for target in _targets(module) if choose(target)]
    if not targets:
        raise UserError("none of the network's parameters is chosen to be generated; see network.generates")
    _check_untied(module, targets)
    made = build(generator, targets) if isinstance(generator, GeneratorOptions) else generator(targets)
    parameter = module.get_parameter(targets[0].name)
    made = made.to(parameter.device, parameter.dtype)
    for target in targets:
        owner, _, name = target.name.rpartition(".")
        module.get_submodule(owner).register_parameter(name, None)
    return Hypernetwork(module, made).train(module.training)


def build(options: GeneratorOptions, targets: Sequence[Target]) -> Generator:
    """The generator that `options.kind` names."""
    start, conditions = options.start, options.conditions
    if options.kind == "layer_embedding":
        return LayerEmbedding(targets, options.layer_embedding, start, conditions)
    if options.kind == "chunked":
        return Chunked(targets, options.chunked, start, conditions)
    return Coordinate(targets, options.coordinate, start, conditions)


def chosen(generates: Sequence[str], exclude: Sequence[str]) -> Callable[[Target], bool]:
    """A choice by kinds (the keys of `KINDS`), but for names that match a pattern of `exclude`."""
    kinds = {kind for word in generates for kind in KINDS[word]}

    def choose(target: Target) -> bool:
        return target.kind in kinds and not any(fnmatchcase(target.name, pattern) for pattern in exclude)

    return choose


def _targets(module: nn.Module) -> Iterator[Target]:
    """Every parameter of a module, described."""
    for path, owner in module.named_modules():
        for name, parameter in owner.named_parameters(path, recurse=False):
            kind = _kind(owner, name.rpartition(".")[2])
            mean, deviation = _statistics(parameter)
            yield Target(name, parameter.shape, kind, *_fans(kind, owner, parameter), mean, deviation)


def _kind(owner: nn.Module, name: str) -> str:
    if isinstance(owner, _BatchNorm):
        return {"weight": "gain", "bias": "shift"}.get(name, "other")
    if isinstance(owner, nn.Linear) or (
        isinstance(owner, _ConvNd) and not isinstance(owner, _ConvTransposeNd)
    ):
        matrix = "linear" if isinstance(owner, nn.Linear) else "convolution"
        return {"weight": matrix, "bias": "bias"}.get(name, "other")
    return "other"


def _fans(kind: str, owner: nn.Module, parameter: Tensor) -> tuple[int, int]:
    """Inputs that an output sums, and outputs that an input goes to, by torch's order of dimensions."""
    if kind not in ("linear", "convolution"):
        return 1, 1
    outputs, inputs, *window = parameter.shape
    taps = torch.Size(window).numel()
    groups = owner.groups if isinstance(owner, _ConvNd) else 1
    return inputs * taps, outputs * taps // groups


@torch.no_grad()
def _statistics(parameter: Tensor) -> tuple[float, float]:
    """Mean and deviation of a start: read on the host, once, when a network is built."""
    return parameter.mean().item(), parameter.std(correction=0).item()


def _check_untied(module: nn.Module, targets: Sequence[Target]) -> None:
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for target in targets:
        same = names[id(module.get_parameter(target.name))]
        if len(same) > 1:
            raise UserError(
                f"{' and '.join(same)} are one parameter: weights that are tied, or in a submodule "
                "registered twice, cannot be generated; leave them out (network.exclude), or untie them"
            )
        owner = module.get_submodule(target.name.rpartition(".")[0])
        if isinstance(owner, nn.RNNBase):
            raise UserError(
                f"{target.name}: torch's recurrent modules keep a list of their weights beside them, so "
                "these cannot be generated; leave them out (network.exclude), or take this package's LSTM"
            )
