"""Options of the MAML family and its networks."""

from dataclasses import dataclass

from metalearn.config import choice, number, required
from metalearn.registry import register


@register("method", "maml", "metalearn.maml.method:Maml")
@dataclass
class MamlOptions:
    """Learn an initialisation from which a few steps fit a new task."""

    name: str = required()
    algorithm: str = choice("maml", "fomaml", "anil", "meta_sgd", "reptile", "imaml")
    backend: str = choice(
        "metalearn", "learn2learn"
    )  # who adapts and differentiates; learn2learn: maml, fomaml
    vectorise: bool = required()  # all tasks of a meta-batch in one pass (vmap), or one after the other
    inner_steps: int = number(
        at_least=0
    )  # in meta-training; 0: joint training on all tasks, no meta-learning
    inner_learning_rate: float = number(above=0)
    evaluation_steps: int = number(at_least=0)  # inner steps when it is judged
    proximal: float = number(at_least=0)  # imaml: weight of half the squared distance from the initialisation
    optimizer: str = choice("adam", "sgd")  # of the meta-parameters
    learning_rate: float = number(above=0)
    clip: float | None = number(above=0)  # largest norm of the meta-gradient; null: none


@register("network", "conv4", "metalearn.maml.networks:Conv4")
@dataclass
class Conv4Options:
    """Four convolutions with batch normalisation and a linear head: the network of few-shot images."""

    name: str = required()
    channels: int = number(at_least=1)  # of every convolution
    downsampling: str = choice("stride", "pool")  # of the convolutions, or 2x2 max pooling after them
