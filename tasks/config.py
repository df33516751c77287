"""Options of every task; numbers and their sources are in conf/task/."""

from dataclasses import dataclass

from metalearn.config import choice, number, required
from metalearn.registry import register


@dataclass
class ExampleOptions:
    """Labelled examples; `train` is what `valid` and `test` leave over."""

    name: str = required()
    batch: int = number(at_least=1)
    evaluation_batch: int = number(at_least=1)  # examples a batch of a sweep
    valid_size: int = number(at_least=0)  # training examples held out for validation; 0: train on all
    drop_last: bool = required()  # an epoch leaves out its last batch if that is not full


@dataclass
class ImageOptions(ExampleOptions):
    """Labelled images, augmented in training."""

    labels: list[int] | None = number(at_least=0)  # keep examples of these, as classes 0, 1, ...; null: all
    normalise: bool = required()  # by the channels' mean and deviation; else pixels from 0 to 1
    crop: int = number(at_least=0)  # pixels of padding before a random crop to the old size; 0: none
    flip: bool = required()  # horizontally, half of the time
    cutout: int = number(at_least=0)  # side of the square set to 0 after normalisation; 0: none


@register("task", "two_moons", "tasks.examples:Examples")
@dataclass
class TwoMoonsOptions(ExampleOptions):
    """two interleaved half circles in the plane, with noise: the smallest classification task"""


@register("task", "digits", "tasks.examples:Examples")
@dataclass
class DigitsOptions(ImageOptions):
    """1,797 real handwritten digits of 8x8 pixels, from scikit-learn"""


@register("task", "mnist", "tasks.examples:Examples")
@dataclass
class MnistOptions(ImageOptions):
    """60,000 + 10,000 handwritten digits of 28x28 pixels"""


@register("task", "cifar10", "tasks.examples:Examples")
@dataclass
class Cifar10Options(ImageOptions):
    """50,000 + 10,000 colour photographs of 32x32 pixels in ten classes"""


@register("task", "imagenet", "tasks.imagenet:Imagenet")
@dataclass
class ImagenetOptions(ExampleOptions):
    """1.28 million photographs in a thousand classes, from your own copy of ILSVRC 2012"""

    side: int = number(at_least=1)  # of what a network sees, in pixels
    resize: int = number(at_least=1)  # evaluation: the shorter side before the middle is cut out
    area: list[float] = number(above=0, at_most=1)  # lowest and highest part of the image that is cut out
    ratio: list[float] = number(above=0)  # lowest and highest ratio of its width to its height
    flip: float = number(at_least=0, at_most=1)  # probability
    jitter: list[float] = number(at_least=0, at_most=1)  # of brightness, contrast, saturation, hue
    threads: int = number(at_least=1)  # that decode
    ahead: int = number(at_least=0)  # batches that they decode before they are asked for


@dataclass
class TextOptions:
    """A text as one long sequence of symbols."""

    name: str = required()
    batch: int = number(at_least=1)  # rows read side by side
    time: int = number(at_least=1)  # symbols a row and batch: the length of truncated backpropagation
    evaluation_batch: int = number(at_least=1)  # rows in a sweep
    evaluation_time: int = number(at_least=1)  # symbols a row and batch of a sweep
    test_batch: int | None = number(at_least=1)  # rows in a sweep of test; null: as `evaluation_batch`
    half_probability: float = number(at_least=0, at_most=1)  # that a batch is meant to have half of `time`
    time_deviation: float = number(at_least=0)  # symbols: of the normal noise on a batch's time
    least_time: int = number(at_least=1)  # bounds of a time so drawn: this
    extra_time: int = number(at_least=0)  # and so many symbols above `time`


@register("task", "python_docs", "tasks.text:Text")
@dataclass
class PythonDocsOptions(TextOptions):
    """characters of the Python language reference, which ships with Python"""


@register("task", "tiny_shakespeare", "tasks.text:Text")
@dataclass
class TinyShakespeareOptions(TextOptions):
    """1.1 million characters of Shakespeare"""


@register("task", "ptb_char", "tasks.text:Text")
@dataclass
class PtbCharOptions(TextOptions):
    """Penn Treebank by characters, 50 symbols (Mikolov 2012)"""


@register("task", "enwik8", "tasks.text:Text")
@dataclass
class Enwik8Options(TextOptions):
    """the first 100 million bytes of an English Wikipedia dump, 205 distinct ones (Hutter prize)"""


@register("task", "ptb_word", "tasks.text:Text")
@dataclass
class PtbWordOptions(TextOptions):
    """Penn Treebank by words, 10,000 of them (Mikolov 2012)"""


@register("task", "wikitext2", "tasks.text:Text")
@dataclass
class Wikitext2Options(TextOptions):
    """Wikipedia articles by words, 33,278 of them (Merity et al. 2016)"""


@dataclass
class HandwritingOptions:
    """Lines of handwriting as the moves of a pen."""

    name: str = required()
    batch: int = number(at_least=1)
    evaluation_batch: int = number(at_least=1)  # lines a batch of a sweep
    bucket: int = number(at_least=1)  # batches whose lines are sorted by length among themselves
    components: int = number(at_least=1)  # Gaussians of the mixture that a network's output is read as
    scaling: float = number(at_least=0, below=1)  # a training line is scaled by a factor within 1 -+ this
    per: str = choice("point", "sequence")  # what the loss that training descends is a mean over


@register("task", "iam", "tasks.iam:Iam")
@dataclass
class IamOptions(HandwritingOptions):
    """12,179 lines that 221 people wrote on a whiteboard, from your own copy of IAM-OnDB"""

    split: str = choice("graves", "official")  # no test set and more to train on, or the lists as they are
    least_points: int = number(at_least=2)  # lines of fewer points are left out


@register("task", "pen_strokes", "tasks.pen_strokes:PenStrokes")
@dataclass
class PenStrokesOptions(HandwritingOptions):
    """words in a synthetic hand: strokes of a small font with slant, drift, speed and jitter"""


@dataclass
class EpisodeOptions:
    """Small tasks of one kind, each with `shots` to adapt on and `queries` to be scored on."""

    name: str = required()
    batch: int = number(at_least=1)  # tasks in a meta-batch
    shots: int = number(at_least=1)  # examples to adapt on, of each class where there are classes
    queries: int = number(at_least=1)  # examples to be scored on, likewise
    evaluated: int = number(at_least=1)  # tasks in a sweep
    evaluation_batch: int = number(at_least=1)  # tasks a batch of a sweep


@register("task", "sinusoid", "tasks.sinusoid:Sinusoid")
@dataclass
class SinusoidOptions(EpisodeOptions):
    """few-shot regression on sine waves (Finn et al. 2017, section 5.1)"""

    amplitude: list[float] = required()  # lowest and highest
    phase: list[float] = required()  # lowest and highest, in radians
    inputs: list[float] = required()  # lowest and highest x


@register("task", "omniglot", "tasks.omniglot:Omniglot")
@dataclass
class OmniglotOptions(EpisodeOptions):
    """few-shot classification of handwritten characters of eight alphabets (Lake et al. 2015)"""

    ways: int = number(at_least=2)  # classes of a task
    rotations: bool = required()  # by 90, 180 and 270 degrees: each is a class of its own


@dataclass
class TranslationOptions:
    """Pairs of sentences in word pieces."""

    name: str = required()
    batch: int = number(at_least=1)  # pairs
    evaluation_batch: int = number(at_least=1)  # pairs a batch of a sweep
    pool: int = number(at_least=1)  # batches whose pairs are sorted by length together
    longest: int | None = number(at_least=1)  # pieces of a side of a training pair; null: any
    pieces: int = number(at_least=8, at_most=65536)  # of both languages together, with the four that are none
    coverage: float = number(above=0, at_most=1)  # share of all characters that the pieces can write
    tokenize: str = choice("13a", "intl", "none")  # sacrebleu's, before BLEU counts


@register("task", "phrases", "tasks.translation:Translation")
@dataclass
class PhrasesOptions(TranslationOptions):
    """English to French, made by a grammar: numbers, dates, times, prices and plain sentences"""

    train_pairs: int = number(at_least=2, at_most=1_000_000)  # the grammar is slow, and ends
    valid_pairs: int = number(at_least=1, at_most=1_000_000)
    test_pairs: int = number(at_least=1, at_most=1_000_000)


@register("task", "wmt14_en_fr", "tasks.translation:Translation")
@dataclass
class Wmt14EnFrOptions(TranslationOptions):
    """36 million pairs of WMT'14, English to French, from your own copy"""

    piece_pairs: int = number(at_least=1)  # evenly spaced training pairs that pieces are learned from
