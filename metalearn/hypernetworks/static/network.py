"""Any registered network with generated weights, as a network of its own."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor

from metalearn import registry
from metalearn.hypernetworks.static.config import HypernetworkOptions
from metalearn.hypernetworks.static.hypernetize import chosen, hypernetize
from metalearn.network import Network, Output
from metalearn.registry import UserError
from metalearn.task import TaskSpec
from metalearn.tree import Tree, dot


class HypernetworkOf(Network):
    """`options.of` with weights made by a generator, and a penalty on what it makes (sheet 8.9)."""

    def __init__(self, options: HypernetworkOptions, spec: TaskSpec) -> None:
        super().__init__()
        if spec.kind == "translation":
            raise UserError(
                f"network hypernetwork: task {spec.name} is a translation, which generated weights "
                "have no search for; choose another task, or network=gnmt_hyperlstm"
            )
        main = registry.build("network", options.options, spec=spec)
        _check_patterns(options.exclude, [name for name, _ in main.named_parameters()])
        self.penalty, self.penalty_of = options.penalty, options.penalty_of
        self.hypernetwork = hypernetize(main, options.generator, chosen(options.generates, options.exclude))

    def forward(self, x: Tensor, state: Tree | None = None, condition: Tensor | int | None = None) -> Output:
        main = self.hypernetwork.module
        main.progress, main.fused = self.progress, self.fused  # type: ignore[assignment]
        weights = self.hypernetwork.weights(condition)
        output: Output = self.hypernetwork.call(weights, x, state)
        if not self.training or not self.penalty:
            return output
        penalised = self._penalised(weights)
        penalty = 0.5 * self.penalty * dot(penalised, penalised)
        return output._replace(penalty=penalty if output.penalty is None else output.penalty + penalty)

    def _penalised(self, weights: Tree) -> Tree:
        """What is generated; or all of two and more dimensions, which leaves out biases and scales."""
        if self.penalty_of == "generated":
            return weights
        whole = weights | dict(self.hypernetwork.module.named_parameters())
        return {name: leaf for name, leaf in whole.items() if leaf.dim() > 1}


def _check_patterns(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse patterns that leave nothing out: a slip of the pen would have all weights generated."""
    if patterns and not any(fnmatchcase(name, pattern) for name in names for pattern in patterns):
        raise UserError(
            f"network.exclude: got {list(patterns)}, which no parameter's name matches; "
            f"names are {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
        )
