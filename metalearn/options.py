"""The options of plain networks and of supervised training."""

from dataclasses import dataclass

from metalearn.config import choice, number, required
from metalearn.registry import register


@register("method", "supervised", "metalearn.supervised:Supervised")
@dataclass
class SupervisedOptions:
    """One network on one task by plain backpropagation."""

    name: str = required()
    optimizer: str = choice("sgd", "adam", "adamw", "nt_asgd")  # the last: sgd, later with averaged weights
    learning_rate: float = number(above=0)
    nominal_time: int | None = number(at_least=1)  # texts: the rate is in proportion to the length over this
    momentum: float = number(at_least=0, below=1)  # of sgd and nt_asgd
    nesterov: bool = required()  # of sgd and nt_asgd: the momentum's gradient is taken a step ahead
    patience: int = number(at_least=1)  # of nt_asgd: latest epochs that a loss is not held against
    betas: list[float] = required()  # of adam and adamw: decay of the first and the second moment
    weight_decay: float = number(at_least=0)
    weight_decay_of: str = choice("all", "kernels")  # the last: of two and more dimensions, no bias or scale
    clip: float | None = number(above=0)  # largest norm of the whole gradient; null: none
    schedule: str = choice("none", "cosine", "exponential", "steps")
    schedule_every: str = choice("step", "epoch")  # how often the schedule moves, and drop path
    final_learning_rate: float = number(at_least=0)  # where the cosine ends
    decay: float = number(above=0, at_most=1)  # of exponential: the rate's factor, at every step or epoch
    milestones: list[int] = number(at_least=1)  # of steps: the steps or epochs that a new rate begins with
    rates: list[float] = number(at_least=0)  # of steps: these rates; before the first, learning_rate
    label_smoothing: float = number(at_least=0, below=1)  # share of the target spread over all classes
    auxiliary_weight: float = number(at_least=0)  # of an auxiliary head's loss
    carry: bool = required()  # language models: batches continue with the hidden state of the one before


@register("network", "mlp", "metalearn.networks:Mlp")
@dataclass
class MlpOptions:
    """A perceptron."""

    name: str = required()
    hidden: list[int] = number(at_least=1)  # units of each hidden layer
    activation: str = choice("sigmoid", "tanh", "relu")
    deviation: float | None = number(above=0)  # of initial weights and biases; null: torch's own start


@register("network", "convnet", "metalearn.networks:Convnet")
@dataclass
class ConvnetOptions:
    """Convolutions with max pooling, then fully connected layers."""

    name: str = required()
    channels: list[int] = number(at_least=1)  # of each convolution; every one is followed by 2x2 max pooling
    kernel: int = number(at_least=1)  # odd: "same" padding
    hidden: list[int] = number(at_least=1)  # units of each fully connected layer before the last
    batch_norm: bool = required()  # by batch statistics in training and evaluation alike
    deviation: float | None = number(above=0)


@register("network", "point", "metalearn.networks:Point")
@dataclass
class PointOptions:
    """A point of a function's domain, to be moved to a minimum."""

    name: str = required()
    deviation: float = number(at_least=0)  # of the start
