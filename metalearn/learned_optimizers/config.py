"""Options of learned optimizers and of their controls."""

from dataclasses import dataclass

from metalearn.config import choice, number, required
from metalearn.registry import register


@dataclass
class OptimizeeOptions:
    """What is optimized and for how long: equal values mean the same problems, whatever optimizes them."""

    name: str = required()
    horizon: int = number(at_least=1)  # steps of one optimizee's run
    deviation: float = number(at_least=0)  # of an optimizee's initial parameters, all Gaussian
    function_gradients: str = choice("own", "mean")  # of a batch's sum (the paper), or its mean (the code)
    valid_problems: int = number(at_least=1)  # runs on fresh problems that a choice is based on
    test_problems: int = number(at_least=1)  # runs on other fresh problems that the result is an average of


@register("rule", "lstm", "metalearn.learned_optimizers.lstm:LstmRule")
@dataclass
class LstmRuleOptions:
    """One small LSTM for all coordinates (Andrychowicz et al. 2016)."""

    name: str = required()
    layers: int = number(at_least=1)  # LSTM layers
    hidden: int = number(at_least=1)  # units of each layer
    preprocess: str = choice("none", "log_sign")  # what the LSTM sees of a gradient
    log_sign_p: float = number(above=0)  # gradients below exp(-p) are seen on a linear scale
    output_scale: float = number(above=0)  # the update is this times the LSTM's output
    forget_bias: float = required()  # constant added to the forget gates
    initial: str = choice("truncated_normal", "uniform")  # of the LSTM's weights


@register("method", "learned_optimizer", "metalearn.learned_optimizers.meta_train:MetaTraining")
@dataclass
class MetaTrainingOptions(OptimizeeOptions):
    """An optimizer (`rule=NAME`) that descends the losses of its own runs."""

    problems: int = number(at_least=1)  # runs side by side in a group, on one network's many starts and data
    groups: int = number(at_least=1)  # of them, each with a problem of its own, averaged over
    unroll: int = number(at_least=1)  # optimizee steps in one meta-gradient; divides horizon
    count_last: bool = required()  # score the point after the unroll's last update too
    second_derivatives: bool = required()  # differentiate the gradients that the rule sees
    learning_rate: float = number(above=0)  # of Adam on the meta-parameters
    clip: float | None = number(above=0)  # largest norm of the meta-gradient; null: none


@register("method", "tuned_optimizers", "metalearn.learned_optimizers.baselines:TunedOptimizers")
@dataclass
class TunedOptimizersOptions(OptimizeeOptions):
    """Optimizers written by hand, each with the learning rate that does best on the validation problems."""

    optimizers: list[str] = required()  # of sgd, momentum, nag, rmsprop, adam
    learning_rates: list[float] = required()  # the one grid that all of them are tuned over, ascending
    momentum: float = number(at_least=0, below=1)  # of momentum and nag
    betas: list[float] = required()  # of adam: decay of the first and the second moment
    alpha: float = number(at_least=0, below=1)  # of rmsprop: decay of the mean square
    epsilon: float = number(above=0)  # of rmsprop and adam
