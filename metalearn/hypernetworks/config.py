"""The options of recurrent language models, and of the cells they are made of."""

from dataclasses import dataclass
from typing import Protocol

from metalearn.config import choice, number, required
from metalearn.registry import register


@dataclass(frozen=True)
class CellOptions:
    """What all cells have in common."""

    layer_norm: bool
    forget_bias: float  # added inside the forget gate's sigmoid; not learned
    recurrent_keep: float  # share of candidate values tanh(g) that recurrent dropout keeps
    # "paper" (appendix A.2.3) or "code" (the authors' supercell.py), where they disagree; "spread": "paper",
    # but scales start from different parts of an embedding (hyperlstm.start_scales)
    initial: str


@dataclass(frozen=True)
class HyperOptions:
    """The small LSTM that scales the rows of the main one's weights."""

    units: int
    embedding: int  # size of each of the twelve z
    layer_norm: bool
    recurrent_keep: float
    embeddings_from: str  # z_t from the hyper cell's output at the "current" step, or at the "previous" one


@dataclass(frozen=True)
class HyperRnnOptions:
    """The small RNN that makes the main one's weights, and how."""

    units: int
    embedding: int  # size of each of the three z
    form: str  # weights "scaled" row by row (eq. 7), or mixed from `embedding` matrices in "full" (eq. 5)
    embeddings_from: str  # z_t from the hyper cell's output at the "current" step, or at the "previous" one


class OfGated(Protocol):
    """A network's options that say what its gated cells are."""

    layer_norm: bool
    forget_bias: float
    initial: str
    recurrent_keep: float


class OfHyper(Protocol):
    """A network's options that say what its hyper cells are."""

    hyper_units: int
    embedding: int
    hyper_layer_norm: bool
    hyper_recurrent_keep: float
    embeddings_from: str


def cell_of(options: OfGated) -> CellOptions:
    """What a network's options say of its cells."""
    return CellOptions(options.layer_norm, options.forget_bias, options.recurrent_keep, options.initial)


def hyper_of(options: OfHyper) -> HyperOptions:
    """What a network's options say of its hyper cells."""
    return HyperOptions(
        units=options.hyper_units,
        embedding=options.embedding,
        layer_norm=options.hyper_layer_norm,
        recurrent_keep=options.hyper_recurrent_keep,
        embeddings_from=options.embeddings_from,
    )


@dataclass
class LanguageModelOptions:
    """A recurrent stack on one-hot symbols."""

    name: str = required()
    units: int = number(at_least=1)
    layers: int = number(at_least=1)
    input_keep: float = number(above=0, at_most=1)
    layer_keep: float = number(above=0, at_most=1)  # share of what a layer hands to the next one
    output_keep: float = number(above=0, at_most=1)


@register("network", "rnn_lm", "metalearn.hypernetworks.language_model:RnnLanguageModel")
@dataclass
class RnnLmOptions(LanguageModelOptions):
    """An ordinary tanh RNN on symbols."""


@register("network", "hyperrnn_lm", "metalearn.hypernetworks.language_model:HyperRnnLanguageModel")
@dataclass
class HyperrnnLmOptions(LanguageModelOptions):
    """A HyperRNN on symbols: a small RNN makes the weights of the main one at each step."""

    hyper_units: int = number(at_least=1)
    embedding: int = number(at_least=1)  # size of each of the three z
    form: str = choice("scaled", "full")  # rows of one matrix scaled, or `embedding` matrices mixed
    embeddings_from: str = choice("current", "previous")  # which output of the hyper cell makes z_t


@dataclass
class GatedOptions(LanguageModelOptions):
    """What LSTMs have beyond that."""

    layer_norm: bool = required()
    forget_bias: float = number()
    initial: str = choice("paper", "code")
    recurrent_keep: float = number(above=0, at_most=1)


@register("network", "lstm_lm", "metalearn.hypernetworks.language_model:LstmLanguageModel")
@dataclass
class LstmLmOptions(GatedOptions):
    """An ordinary LSTM on symbols."""


@register("network", "hyperlstm_lm", "metalearn.hypernetworks.language_model:HyperLstmLanguageModel")
@dataclass
class HyperlstmLmOptions(GatedOptions):
    """A HyperLSTM on symbols: a small LSTM scales the main one's weights at each step."""

    initial: str = choice("paper", "code", "spread")
    hyper_units: int = number(at_least=1)
    embedding: int = number(at_least=1)  # size of each of the twelve z
    hyper_layer_norm: bool = required()
    hyper_recurrent_keep: float = number(above=0, at_most=1)
    embeddings_from: str = choice("current", "previous")  # which output of the hyper cell makes z_t


@dataclass
class HandwritingOptions:
    """A recurrent stack on the moves of a pen."""

    name: str = required()
    units: int = number(at_least=1)
    layers: int = number(at_least=1)
    skip: bool = required()  # layers also read the moves, and the last map reads all layers (Graves 2013)
    layer_norm: bool = required()
    forget_bias: float = number()
    initial: str = choice("paper", "code")
    recurrent_keep: float = number(above=0, at_most=1)
    output_keep: float = number(above=0, at_most=1)


@register("network", "handwriting_lstm", "metalearn.hypernetworks.handwriting:HandwritingLstm")
@dataclass
class HandwritingLstmOptions(HandwritingOptions):
    """LSTMs that say where a pen goes next."""


@register("network", "handwriting_hyperlstm", "metalearn.hypernetworks.handwriting:HandwritingHyperlstm")
@dataclass
class HandwritingHyperlstmOptions(HandwritingOptions):
    """HyperLSTMs that say where a pen goes next."""

    initial: str = choice("paper", "code", "spread")
    hyper_units: int = number(at_least=1)
    embedding: int = number(at_least=1)  # size of each of the twelve z
    hyper_layer_norm: bool = required()
    hyper_recurrent_keep: float = number(above=0, at_most=1)
    embeddings_from: str = choice("current", "previous")  # which output of the hyper cell makes z_t
