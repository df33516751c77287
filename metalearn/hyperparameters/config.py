"""Options of learned hyper-parameters and of their control."""

from dataclasses import dataclass

from metalearn.config import choice, number, required
from metalearn.registry import register


@dataclass
class InnerRunOptions:
    """How a fresh network is trained, and from which hyper-parameters: equal values mean the same runs."""

    name: str = required()
    horizon: int = number(at_least=1)  # steps of one inner run
    runs: int = number(at_least=1)  # inner runs that one step is an average of
    optimizer: str = choice("sgd", "adam")  # of the inner runs
    momentum: float = number(at_least=0, below=1)  # of sgd
    betas: list[float] = required()  # of adam: decay of the first and the second moment
    epsilon: float = number(above=0)  # of adam
    learning_rates: str = choice("global", "per_layer", "per_step", "per_layer_and_step", "fixed")
    penalties: str = choice("none", "global", "per_layer", "per_weight")
    learning_rate: float = number(above=0)  # where every learning rate starts
    penalty: float = number(above=0)  # where every L2 penalty starts: penalty * w^2 / 2 is added to the loss
    evaluation_runs: int = number(at_least=2)  # fresh pairs of runs that the gain is an average of


@register("method", "hyperparameters", "metalearn.hyperparameters.method:Hyperparameters")
@dataclass
class HyperparametersOptions(InnerRunOptions):
    """Learning rates and L2 penalties by their hypergradients through whole inner runs."""

    outer_batches: int = number(at_least=1)  # minibatches of search_valid joined into one outer loss
    outer_every: int = number(at_least=0)  # inner steps between further outer losses; 0: after the last only
    meta_learning_rate: float = number(above=0)  # of Adam on the logarithms of the hyper-parameters
    clip: float | None = number(above=0)  # largest norm of the hypergradient; null: none


@register("method", "random_search", "metalearn.hyperparameters.random_search:RandomSearch")
@dataclass
class RandomSearchOptions(InnerRunOptions):
    """The best of many log-uniform draws of the same hyper-parameters."""

    learning_rates: str = choice("global", "per_layer", "fixed")
    penalties: str = choice("none", "global", "per_layer")
    learning_rate_range: list[float] = number(above=0)  # lowest and highest
    penalty_range: list[float] = number(above=0)  # lowest and highest
