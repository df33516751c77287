"""The options of translating networks."""

from dataclasses import dataclass, field

from metalearn.config import choice, number, required
from metalearn.registry import register


@dataclass
class SearchOptions:
    """Beam search (Wu et al. 2016, section 7)."""

    beam: int = number(at_least=1)  # hypotheses kept
    margin: float | None = number(above=0)  # nats that a next piece may be below the best one; null: any
    length_penalty: float = number(at_least=0)  # alpha
    coverage_penalty: float = number(at_least=0)  # beta
    longest_ratio: float = number(at_least=0)  # a translation has at most so many pieces by the source's, and
    longest_extra: int = number(at_least=1)  # so many more


@dataclass
class GnmtOptions:
    """Encoder and decoder of `layers` each, with residual connections, and attention between them."""

    name: str = required()
    units: int = number(at_least=1)  # of all layers and of the embeddings of pieces
    layers: int = number(at_least=2)
    residual_from: int = number(at_least=3)  # the lowest layer, counted from 1, that adds its input
    attention_units: int = number(at_least=1)
    layer_norm: bool = required()
    forget_bias: float = number()
    initial: str = choice("paper", "code")  # start of the cells
    uniform: float = number(above=0)  # half the range that all other weights start in
    dropout: float = number(at_least=0, below=1)  # of the inputs of all layers and of the last map
    recurrent_keep: float = number(above=0, at_most=1)
    search: SearchOptions = field(default_factory=SearchOptions)


@register("network", "gnmt_lstm", "metalearn.hypernetworks.translation.network:GnmtLstm")
@dataclass
class GnmtLstmOptions(GnmtOptions):
    """Translation by ordinary LSTMs."""

    uniform_cells: bool = required()  # weights of the cells, too, start in the range of `uniform`


@register("network", "gnmt_hyperlstm", "metalearn.hypernetworks.translation.network:GnmtHyperLstm")
@dataclass
class GnmtHyperlstmOptions(GnmtOptions):
    """Translation by HyperLSTMs."""

    hyper_units: int = number(at_least=1)
    embedding: int = number(at_least=1)  # size of each of the twelve z
    hyper_layer_norm: bool = required()
    hyper_recurrent_keep: float = number(above=0, at_most=1)
    embeddings_from: str = choice("current", "previous")  # which output of the hyper cell makes z_t
