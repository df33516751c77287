"""Gradient-based meta-learning on one footing: DARTS, HyperNetworks and learned optimizers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metalearn.learned_optimizers.torch_optimizer import LearnedOptimizer as LearnedOptimizer


def __getattr__(name: str) -> Any:
    """`LearnedOptimizer`, imported when it is asked for: it brings torch."""
    if name == "LearnedOptimizer":
        from metalearn.learned_optimizers.torch_optimizer import LearnedOptimizer

        return LearnedOptimizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
