"""Options of black-box optimizers and of their controls."""

from dataclasses import dataclass

from metalearn.config import choice, number, required
from metalearn.registry import register


@dataclass
class QueriedOptions:
    """What is optimized and how often it is asked: equal values mean the same functions."""

    name: str = required()
    horizon: int = number(at_least=2)  # queries of one function
    valid_functions: int = number(at_least=1)  # fresh functions that a choice is based on
    test_functions: int = number(at_least=1)  # other fresh functions that the result is an average of


@register(
    "method", "black_box_optimizer", "metalearn.learned_optimizers.black_box.training:BlackBoxOptimizer"
)
@dataclass
class BlackBoxOptimizerOptions(QueriedOptions):
    """A recurrent network that proposes the next query, trained on functions that have gradients."""

    controller: str = choice("lstm", "dnc")
    hidden: int = number(at_least=1)  # units of the LSTM
    forget_bias: float = required()  # constant added to the forget gate
    slots: int = number(at_least=1)  # of dnc: rows of its memory
    width: int = number(at_least=1)  # of dnc: numbers in a row
    read_heads: int = number(at_least=1)  # of dnc
    squash: str = choice("sigmoid", "clip")  # how the output becomes a point of the box
    workers: int = number(at_least=1)  # queries under way at a time
    runtime_spread: float = number(at_least=0, below=1)  # s: an evaluation takes uniformly 1 - s to 1 + s
    loss: str = choice("sum", "final", "ei", "oi")
    detach_incumbent: bool = required()  # of oi: no gradient through the best value so far
    first_horizon: int = number(at_least=2)  # queries of a function at the first training step
    full_horizon_after: int = number(at_least=0)  # training steps over which that grows to `horizon`
    learning_rate: float = number(above=0)  # of Adam
    clip: float | None = number(above=0)  # largest norm of the gradient; null: none
    optimizer: str | None = required()  # a finished run: its network is tested as it is; null: train one


@register("method", "black_box_controls", "metalearn.learned_optimizers.black_box.controls:BlackBoxControls")
@dataclass
class BlackBoxControlsOptions(QueriedOptions):
    """Random search, libraries and a Gaussian process with the true prior on the test functions."""

    optimizers: list[str] = choice("random", "gp", "tpe", "gp_true")
    startup: int = number(at_least=1)  # of gp and tpe: random queries before the first proposal
    candidates: int = number(at_least=1)  # of gp_true: points that the best are refined of, per dimension
    starts: int = number(at_least=1)  # of gp_true: points that are refined
    refinements: int = number(at_least=0)  # of gp_true: steps of Adam on them
    refinement_rate: float = number(above=0)  # of gp_true: Adam's, in sides of the box
