"""Options of the update rules beside the LSTM."""

from dataclasses import dataclass

from metalearn.config import choice, number, required
from metalearn.registry import register


@register("rule", "rnnprop", "metalearn.learned_optimizers.rnnprop:RnnProp")
@dataclass
class RnnPropOptions:
    """An LSTM that sees what Adam and RMSprop would do (Lv et al. 2017)."""

    name: str = required()
    layers: int = number(at_least=1)  # LSTM layers
    hidden: int = number(at_least=1)  # units of each layer
    features: int = number(at_least=1)  # units of the map before the LSTM
    betas: list[float] = number(at_least=0, below=1)  # decay of the first and the second moment
    epsilon: float = number(above=0)  # added to the root of the second moment
    output_scale: float = number(above=0)  # the longest step of a coordinate
    forget_bias: float = required()  # constant added to the forget gates
    initial: str = choice("truncated_normal", "uniform")  # of the weights


@register("rule", "hierarchical", "metalearn.learned_optimizers.hierarchical:Hierarchical")
@dataclass
class HierarchicalOptions:
    """Small recurrent networks for coordinates, tensors and the whole problem (Wichrowska et al. 2017)."""

    name: str = required()
    hidden: int = number(at_least=1)  # units of the coordinates' network
    tensor_hidden: int = number(at_least=1)  # units of the tensors' network
    global_hidden: int = number(at_least=1)  # units of the problem's network
    timescales: int = number(at_least=2)  # momenta, each twice as slow as the one before
    decay: float = number(above=0, below=1)  # of the fastest momentum, to start with
    learning_rate: float = number(above=0)  # root mean square of a tensor's first step
    rate_memory: float = number(above=0, below=1)  # decay of the log rate's average, to start with
    initial_scale: float = number(above=0)  # deviation of fresh weights times the root of a map's inputs


@register("rule", "mlp", "metalearn.learned_optimizers.mlp:MlpRule")
@dataclass
class MlpRuleOptions:
    """A very small perceptron on features of each coordinate (Metz et al. 2022)."""

    name: str = required()
    hidden: list[int] = number(at_least=1)  # units of each hidden layer
    decays: list[float] = number(at_least=0, below=1)  # of the momenta
    square_decay: float = number(above=0, below=1)  # of the mean square
    timescales: list[float] = number(above=0)  # in steps; what the perceptron sees of time
    epsilon: float = number(above=0)  # added to the root mean square
    step_multiplier: float = number(above=0)  # of the update
    magnitude_multiplier: float = number(above=0)  # of the update's log magnitude
    factored: bool = required()  # row and column means of the squared gradient as features too


@register("rule", "adam", "metalearn.learned_optimizers.learnable_adam:LearnableAdam")
@dataclass
class LearnableAdamOptions:
    """Adam whose learning rate, decays and epsilon are learned; these are what they start at."""

    name: str = required()
    learning_rate: float = number(above=0)
    betas: list[float] = number(above=0, below=1)  # decay of the first and the second moment
    epsilon: float = number(above=0)
    groups: str = choice("single", "size")  # one set of numbers, or one each for vectors, matrices, kernels
    schedule: str = choice("none", "exponential")  # of the learning rate
    schedule_steps: float = number(above=0)  # in which the rate falls by a factor that is learned


@register("rule", "ntm_bfgs", "metalearn.learned_optimizers.ntm_bfgs:NtmBfgs")
@dataclass
class NtmBfgsOptions:
    """LSTMs that read and write a common memory, as BFGS its inverse Hessian (Andrychowicz et al. 2016)."""

    name: str = required()
    layers: int = number(at_least=1)  # LSTM layers of the controller
    hidden: int = number(at_least=1)  # units of each layer
    averaging: int = number(at_least=0)  # of them global averaging cells
    preprocess: str = choice("none", "log_sign")  # what the controller sees of a gradient and of what it read
    log_sign_p: float = number(above=0)  # numbers below exp(-p) are seen on a linear scale
    output_scale: float = number(above=0)  # the update is this times the controller's output
    forget_bias: float = required()  # constant added to the forget gates
    initial: str = choice("truncated_normal", "uniform")  # of the weights
    memory: str = choice("matrix", "pairs")  # n x n numbers, or the vectors last written
    first: str = choice("identity", "zero")  # the memory before the first step
    writes: int = number(at_least=1)  # outer products added to the memory at a step
    history: int = number(at_least=1)  # steps whose vectors are kept, with memory=pairs
