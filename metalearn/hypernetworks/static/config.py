"""The options of generators, and of any network whose weights they make."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from metalearn import registry
from metalearn.compose import file_of
from metalearn.config import choice, number, required, typed
from metalearn.registry import UserError, register


@dataclass
class StartOptions:
    """The distribution that generated weights start from; each is drawn anew with the network's seed."""

    initial: str = choice("ordinary", "hyperfan_in", "hyperfan_out", "he_blocks", "normal")
    gain: float = number(above=0)  # of hyperfan and he_blocks: variance times fan; 2 (He) fits ReLU, 1 others
    deviation: float = number(above=0)  # of normal: of all weights and embeddings of the generator
    vectors: float = number(above=0)  # deviation of generated biases, gains and shifts from their usual start
    shared: float = number(above=0)  # of chunked: size of layers' and conditions' embeddings against chunks'


@dataclass
class LayerEmbeddingOptions:
    """Equations 1 to 3: one embedding for each basic block of a kernel, two linear maps."""

    embedding: int = number(at_least=1)  # N_z
    hidden: int = number(at_least=1)  # d
    block: int = number(at_least=1)  # input and output channels of a basic block
    undivided: str = choice("refuse", "shrink")  # sides that `block` does not divide: an error, or cut evenly
    rank: int | None = number(at_least=1)  # of the output map's weights, as a product of two; null: full


@dataclass
class ChunkedOptions:
    """One network from chunk embeddings to equal chunks of all parameters laid end to end."""

    size: int = number(at_least=1)  # of a chunk
    embedding: int = number(at_least=1)  # of each chunk
    layer_embedding: int = number(at_least=0)  # of each parameter, which then begins a chunk of its own
    condition_embedding: int = number(at_least=1)  # of each condition, where there is more than one
    hidden: list[int] = number(at_least=1)  # ReLU units of each hidden layer; none: a linear map
    rank: int | None = number(at_least=1)


@dataclass
class CoordinateOptions:
    """Appendix A.1: a small ReLU network from the places of two units to the weight between them."""

    hidden: list[int] = number(at_least=1)


@dataclass
class GeneratorOptions:
    """Which generator makes the weights; of the three groups, the one that `kind` names counts."""

    kind: str = choice("layer_embedding", "chunked", "coordinate")
    conditions: int = number(at_least=1)  # how many tasks have weights of their own
    start: StartOptions = field(default_factory=StartOptions)
    layer_embedding: LayerEmbeddingOptions = field(default_factory=LayerEmbeddingOptions)
    chunked: ChunkedOptions = field(default_factory=ChunkedOptions)
    coordinate: CoordinateOptions = field(default_factory=CoordinateOptions)


@register("network", "hypernetwork", "metalearn.hypernetworks.static.network:HypernetworkOf")
@dataclass
class HypernetworkOptions:
    """Another network, with weights that a generator makes.

    `options` comes as what differs from conf/network/OF.yaml, and is all of that network's options after.
    """

    name: str = required()
    of: str = required()  # the network: its name in `metalearn list networks`
    options: Any = required()
    generates: list[str] = choice("convolutions", "linears", "biases", "batch_norms")
    exclude: list[str] = required()  # parameters that stay ordinary: patterns of dotted names, e.g. "stem.*"
    penalty: float = number(at_least=0)  # times half the sum of squares of generated weights, in training
    penalty_of: str = choice("generated", "kernels")  # the last: of all kernels, the ordinary ones' too
    generator: GeneratorOptions = field(default_factory=GeneratorOptions)

    def __post_init__(self) -> None:
        self.options = _options_of(self.of, self.options)


@register("network", "mnist_convnet", "metalearn.hypernetworks.static.convnet:MnistConvnet")
@dataclass
class MnistConvnetOptions:
    """Two convolutions, and one linear map."""

    name: str = required()
    channels: int = number(at_least=1)  # of either convolution
    kernel: int = number(at_least=1)  # odd: "same" padding
    deviation: float = number(above=0)  # of the first weights: normal, cut off at two deviations
    bias: float = number()  # every bias at the start


@register("network", "wide_resnet", "metalearn.hypernetworks.static.wide_resnet:WideResnet")
@dataclass
class WideResnetOptions:
    """A wide residual network."""

    name: str = required()
    depth: int = number(at_least=10)  # 6 n + 4: n blocks of two convolutions in each of three groups
    factor: int = number(at_least=1)  # k: groups are 16 k, 32 k and 64 k channels wide
    shortcuts: str = choice("zero_pad", "projection")  # where widths differ
    convolution_bias: bool = required()  # on every 3x3 convolution; the shortcuts have none


def _options_of(name: str, changes: Any) -> Any:
    """The checked options of the network `name`: its yaml file with `changes` over it."""
    if name == "hypernetwork":
        raise UserError("network.of: got 'hypernetwork', must be a network with weights of its own")
    if not isinstance(changes, dict):
        raise UserError(f"network.options: got {changes!r}, must be a group of {name}'s options, or {{}}")
    try:
        schema = registry.entry("network", name).options
    except UserError as error:
        raise UserError(f"network.of: {error}") from None
    if changes.get("name", name) != name:
        raise UserError(f"network.options.name: got {changes['name']!r}, must be {name!r}, as network.of is")
    defaults = OmegaConf.to_container(OmegaConf.load(file_of(f"network/{name}")))
    assert isinstance(defaults, dict)
    return typed(
        schema, {**{str(key): value for key, value in defaults.items()}, **changes}, "network.options."
    )
