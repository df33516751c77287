"""Options of learned optimizers and of their controls."""

from dataclasses import dataclass
from typing import Any

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
    averaging: int = number(at_least=0)  # units of each layer at their mean over all coordinates; 0: none
    groups: str = choice("single", "kind", "code")  # LSTMs: one, or two for convolutional and other tensors


@dataclass
class HorizonOptions:
    """How long the runs of meta-training are, of at most `horizon` steps, in whole unrolls."""

    draw: str = choice("fixed", "log_uniform")  # always the longest allowed, or between `shortest` and it
    shortest: int = number(at_least=1)  # steps; of log_uniform
    curriculum: str = choice("none", "linear", "geometric")  # how the longest allowed grows to `horizon`
    first: int = number(at_least=1)  # steps of the longest run at the start; of a curriculum
    over: int = number(at_least=1)  # steps of meta-training until it has grown; of a curriculum
    stagger: bool = required()  # cut the groups' first runs, so that they do not start anew together


@dataclass
class ImitationOptions:
    """What the rule is taught by Adam before it learns by its own runs."""

    steps: int = number(at_least=0)  # of meta-training that do nothing else; 0: none
    learning_rate: float = number(above=0)  # of Adam as the teacher
    betas: list[float] = required()
    epsilon: float = number(above=0)


@dataclass
class AugmentationOptions:
    """Random scaling of training problems; those of evaluation are left as they are."""

    variables: float = number(at_least=0)  # their unit is exp(U[-variables, variables]); 0: 1
    by: str = choice("coordinate", "tensor", "problem")  # what has a unit of its own
    loss: float = number(at_least=0)  # the rule descends exp(U[-loss, loss]) times the loss; 0: the loss


@dataclass
class UpdatesOptions:
    """What is shown of a trained optimizer's updates (appendix B)."""

    steps: int = number(at_least=0)  # of a run, from its start; 0: nothing is shown
    points: int = number(at_least=2)  # gradients that are put in the place of the present one
    reach: float | None = number(above=0)  # the largest of them; null: the largest that the run has seen
    adam_learning_rate: float = number(above=0)  # of the optimizers beside it
    sgd_learning_rate: float = number(above=0)
    betas: list[float] = required()
    epsilon: float = number(above=0)


@register("method", "learned_optimizer", "metalearn.learned_optimizers.meta_train:MetaTraining")
@dataclass
class MetaTrainingOptions(OptimizeeOptions):
    """An optimizer (`rule=NAME`) that descends the losses of its own runs."""

    problems: int = number(at_least=1)  # runs side by side in a group, on one network's many starts and data
    groups: int = number(at_least=1)  # of them, each with a problem of its own, averaged over
    unroll: int = number(at_least=1)  # optimizee steps in one meta-gradient; divides horizon
    count_last: bool = required()  # score the point after the unroll's last update too
    objective: str = choice("all", "last")  # points of an unroll that count: all, or the last (w_t of eq. 3)
    score: str = choice("loss", "relative", "log")  # a problem's loss, its ratio to the run's first, its log
    second_derivatives: bool = required()  # differentiate the gradients that the rule sees
    learning_rate: float = number(above=0)  # of Adam on the meta-parameters
    clip: float | None = number(above=0)  # largest norm of the meta-gradient; null: none
    particles: str = choice("one_by_one", "shared", "own")  # of evolution and pes: in turn; all in one pass,
    # with a perturbation for all problems; in one pass, with one for each problem
    augmentation: AugmentationOptions = required()
    horizons: HorizonOptions = required()
    imitation: ImitationOptions = required()
    updates: UpdatesOptions = required()


@dataclass
class MemberOptions:
    """One kind of problem of a mixture: what is fixed of its task and network, and what is drawn."""

    weight: float = number(above=0)  # how often it comes, against the other members
    overrides: list[str] = required()  # of task and network, as on a command line
    draw: dict[str, Any] = required()  # option -> distribution (`distributions`); also batch and deviation


@register("mixture", "mixture", "metalearn.learned_optimizers.mixture:Mixture")
@dataclass
class MixtureOptions:
    """Another task and network for each run, from members with weights; their options are drawn."""

    name: str = required()
    title: str = required()  # what runs and reports call it
    together: int = number(at_least=1)  # problems of each draw that evaluation takes, side by side
    members: dict[str, Any] = required()  # name -> MemberOptions


@register("method", "tuned_optimizers", "metalearn.learned_optimizers.baselines:TunedOptimizers")
@dataclass
class TunedOptimizersOptions(OptimizeeOptions):
    """Optimizers written by hand, each with the learning rate that does best on the validation problems."""

    optimizers: list[str] = required()  # of sgd, momentum, nag, rmsprop, adam, adamw, nadam
    learning_rates: list[float] = required()  # the one grid that all of them are tuned over, ascending
    momentum: float = number(at_least=0, below=1)  # of momentum and nag
    betas: list[float] = required()  # of adam, adamw and nadam: decay of the first and the second moment
    alpha: float = number(at_least=0, below=1)  # of rmsprop: decay of the mean square
    epsilon: float = number(above=0)  # of rmsprop, adam, adamw and nadam
    weight_decay: float = number(at_least=0)  # of adamw
    momentum_decay: float = number(at_least=0)  # of nadam


@register("method", "applied_optimizer", "metalearn.learned_optimizers.applied:AppliedOptimizer")
@dataclass
class AppliedOptimizerOptions(OptimizeeOptions):
    """A trained optimizer, frozen, on the configured problems, and its score against tuned ones."""

    optimizer: str = required()  # a run directory of learned_optimizer, an export, or the word pretrained
    controls: str | None = required()  # a run directory of tuned_optimizers on the same problems; null: none
    reference: str = required()  # the control that the score is against
    window: int = number(at_least=1)  # points that a loss is averaged over before curves are compared
