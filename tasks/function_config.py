"""Options of function families: what optimizers move a point, or an image, to a minimum of."""

from dataclasses import dataclass

from metalearn.config import choice, number, required
from metalearn.registry import register


@dataclass
class FunctionOptions:
    """A family of functions of theta; a batch is that many independent members."""

    name: str = required()
    batch: int = number(at_least=1)
    dimension: int = number(at_least=2)
    evaluated: int = number(at_least=1)  # functions in a sweep


@register("task", "quadratic", "tasks.functions:Quadratic")
@dataclass
class QuadraticOptions(FunctionOptions):
    """||W theta - y||^2 with random W and y (Andrychowicz et al. 2016, section 3.1)"""

    distribution: str = choice("gaussian", "uniform")  # of the entries of W and y: the paper's, the code's


@register("task", "rosenbrock", "tasks.functions:Rosenbrock")
@dataclass
class RosenbrockOptions(FunctionOptions):
    """curved valleys with random optimum and steepness"""

    steepness: float = number(at_least=1)  # the largest factor of the valley's walls


@register("task", "rastrigin", "tasks.functions:Rastrigin")
@dataclass
class RastriginOptions(FunctionOptions):
    """a quadratic under cosine ripples: many local minima"""

    ripple: float = number(at_least=0)  # the height of the ripples, A


@register("task", "logistic_regression", "tasks.regression_functions:LogisticRegression")
@dataclass
class LogisticRegressionOptions(FunctionOptions):
    """log loss on random examples on either side of a noisy hyperplane"""

    examples: int = number(at_least=1)
    bias: bool = required()  # the last coordinate of theta; the others are weights
    noise: float = number(at_least=0)  # deviation, against 1 of what says which side an example is on
    l2: float = number(at_least=0)  # l2/2 |weights|^2 is added


@register("task", "lasso", "tasks.regression_functions:Lasso")
@dataclass
class LassoOptions(FunctionOptions):
    """least squares with an absolute penalty: ||A theta - b||^2 / 2 + penalty |theta|_1"""

    rows: int = number(at_least=1)  # of A
    penalty: float = number(at_least=0)


@register("task", "neural_art", "tasks.neural_art:NeuralArt")
@dataclass
class NeuralArtOptions:
    """images with the content of one photograph and the style of another (Gatys et al. 2015)"""

    name: str = required()
    batch: int = number(at_least=1)  # images, each a function of its own
    evaluated: int = number(at_least=1)  # images in a sweep
    side: int = number(at_least=2)  # of an image, in pixels
    style: str = required()  # flower, hopper, or a file of neural_art/style/ without its suffix
    origin: str = choice("content", "noise")  # theta is added to the content image, or is the image
    smallest_box: float = number(above=0, at_most=1)  # part of a photograph's shorter side that is cut out
    valid_images: int = number(at_least=1)  # held out of neural_art/content/
    test_images: int = number(at_least=1)  # likewise
    features: str = choice("auto", "imagenet", "random")  # auto: ImageNet's if they can be had
    thinning: int = number(at_least=1, at_most=64)  # VGG's channels are divided by it
    pooling: str = choice("max", "average")
    content_layers: list[str] = required()
    style_layers: list[str] = required()
    alpha: float = number(at_least=0)  # weight of the content
    beta: float = number(at_least=0)  # of the style
    gamma: float = number(at_least=0)  # of the total variation


@register("task", "gaussian_process", "tasks.gaussian_process:GaussianProcess")
@dataclass
class GaussianProcessOptions(FunctionOptions):
    """functions on a unit box, drawn from a Gaussian process as they are asked (Chen et al. 2017)"""

    dimension: int = number(at_least=1)
    queries: int = number(at_least=1)  # how often a function may be asked
    kernel: str = choice("rbf", "matern52")
    length_scale: float = number(above=0)  # of all dimensions, in sides of the box
    variance: float = number(above=0)
    jitter: float = number(above=0)  # the variance of a value beside the function's own


@dataclass
class BenchmarkOptions(FunctionOptions):
    """A test function on the unit box, moved about, with mean 0 and variance 1 over its own domain."""

    translation: float = number(at_least=0)  # largest, of each dimension, in sides of the box
    scaling: list[float] = number(above=0)  # lowest and highest factor of each dimension
    flip: bool = required()  # a dimension, half of the time
    permute: bool = required()  # the dimensions


@register("task", "branin", "tasks.benchmark_functions:Branin")
@dataclass
class BraninOptions(BenchmarkOptions):
    """Branin's function of 2 dimensions, instances moved about (Chen et al. 2017)"""

    dimension: int = number(at_least=2, at_most=2)


@register("task", "goldstein_price", "tasks.benchmark_functions:GoldsteinPrice")
@dataclass
class GoldsteinPriceOptions(BenchmarkOptions):
    """Goldstein and Price's function of 2 dimensions, instances moved about (Chen et al. 2017)"""

    dimension: int = number(at_least=2, at_most=2)


@register("task", "hartmann3", "tasks.benchmark_functions:Hartmann3")
@dataclass
class Hartmann3Options(BenchmarkOptions):
    """Hartmann's function of 3 dimensions, instances moved about (Chen et al. 2017)"""

    dimension: int = number(at_least=3, at_most=3)


@register("task", "hartmann6", "tasks.benchmark_functions:Hartmann6")
@dataclass
class Hartmann6Options(BenchmarkOptions):
    """Hartmann's function of 6 dimensions, instances moved about (Chen et al. 2017)"""

    dimension: int = number(at_least=6, at_most=6)
