"""Translation of sentences, in word pieces that both languages share."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from metalearn.registry import UserError
from metalearn.rng import Key, generator
from metalearn.task import BEGIN, END, PADDING, Batch, Metrics, Split, Task, TaskSpec
from tasks.config import TranslationOptions
from tasks.word_pieces import WordPieces


class Sentences(NamedTuple):
    """Symbols of many sentences end to end, without BEGIN and END; in memory or mapped from a file."""

    symbols: np.ndarray  # [symbol] of some unsigned kind
    offsets: np.ndarray  # [sentence + 1] int64: where each begins

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:  # type: ignore[override]
        return self.symbols[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @classmethod
    def of(cls, sentences: Sequence[Sequence[int]]) -> "Sentences":
        """In memory."""
        offsets = np.cumsum([0, *map(len, sentences)], dtype=np.int64)
        symbols = np.fromiter((s for sentence in sentences for s in sentence), np.uint16, int(offsets[-1]))
        return cls(symbols, offsets)


class Part(NamedTuple):
    """The pairs of a split; row k of either side belongs to row k of the other."""

    source: Sentences
    target: Sentences


class Corpus(NamedTuple):
    """What a reader gives."""

    parts: dict[str, Part]  # train, valid, test
    references: dict[str, list[str]]  # the targets of valid and test as they were written
    pieces: WordPieces
    source: str
    licence: str
    provenance: str
    digest: str
    comparable: bool = True


class Translation(Task):
    """Pairs of sentences; every target piece and the symbol that ends it are to be foretold.

    Training pairs with a side of more than `longest` pieces are left out; `search_train` and `search_valid`
    are the first and the second half of the rest. A pass of `batch` takes each pair once but for what does
    not fill a batch: a permutation by (seed, split, pass) is cut into pools of `pool` batches, and a pool is
    sorted by length, cut into batches, and these are shuffled. `sweep` takes all pairs from short to long.
    """

    def __init__(
        self,
        options: TranslationOptions,
        seed: int,
        data_dir: Path,
        download: bool,  # noqa: ARG002 (nothing here is fetched)
        device: torch.device,
    ) -> None:
        corpus = _read(options, data_dir)
        self.options, self.seed, self.device = options, seed, device
        self.parts, self.pieces, self.references = corpus.parts, corpus.pieces, corpus.references
        self.rows = _rows(corpus.parts, options)
        self._sweeps: dict[str, list[np.ndarray]] = {}  # by split: the rows of each batch
        self._pass: dict[str, tuple[int, np.ndarray]] = {}  # by split: the number of a pass, its order
        self._pool: dict[str, tuple[int, list[np.ndarray]]] = {}  # by split: a pool's number, its batches
        self.spec = TaskSpec(
            name=options.name,
            kind="translation",
            input_shape=(),
            outputs=len(corpus.pieces),
            sizes={split: len(rows) for split, rows in self.rows.items()},
            metric="bleu",
            source=corpus.source,
            licence=corpus.licence,
            provenance=corpus.provenance,
            digest=corpus.digest,
            comparable=corpus.comparable,
        )
        self.batches("train")  # refuses a batch that is too large before anything runs

    def encode(self, text: str) -> Int64[Tensor, " time"]:
        """A source sentence as a network reads it, with the symbol that ends it."""
        return torch.tensor([*self.pieces.encode([text])[0], END])

    def decode(self, symbols: Sequence[int] | Tensor) -> str:
        """The sentence of symbols; those that begin, end and fill it up are left out."""
        return self.pieces.decode(symbols.tolist() if isinstance(symbols, Tensor) else list(symbols))

    def batches(self, split: Split) -> int:
        pairs, size = len(self.rows[split]), self.options.batch
        if size > pairs:
            raise UserError(
                f"task.batch: got {size}, must be at most {pairs}, the pairs of {self.options.name}'s "
                f"split {split}"
            )
        return pairs // size

    def batch(self, split: Split, index: int) -> Batch:
        turn, place = divmod(index, self.batches(split))
        pool, within = divmod(place, self.options.pool)
        rows = self._batches_of(split, turn, pool)[within]
        return self._padded(split, rows, (self.seed, self.options.name, split, index))

    def _order(self, split: Split, turn: int) -> np.ndarray:
        """The rows of a pass in the order of its pools, kept until another pass is asked for."""
        known = self._pass.get(split)
        if known is None or known[0] != turn:
            rows = self.rows[split]
            order = torch.randperm(len(rows), generator=generator(self.seed, "order", split, turn))
            used = order[: self.batches(split) * self.options.batch].numpy()
            known = self._pass[split] = turn, rows[used]
        return known[1]

    def _batches_of(self, split: Split, turn: int, pool: int) -> list[np.ndarray]:
        """The rows of each batch of a pool, kept until another pool is asked for."""
        size, pools = self.options.batch, math.ceil(self.batches(split) / self.options.pool)
        number = turn * pools + pool
        known = self._pool.get(split)
        if known is None or known[0] != number:
            width = size * self.options.pool
            rows = self._order(split, turn)[pool * width : (pool + 1) * width]
            batches = np.split(rows[self._by_length(split, rows)], len(rows) // size)
            order = torch.randperm(len(batches), generator=generator(self.seed, "pool", split, number))
            known = self._pool[split] = number, [batches[place] for place in order.tolist()]
        return known[1]

    def _by_length(self, split: Split, rows: np.ndarray) -> np.ndarray:
        """Places of `rows` from short to long: by the target, equal ones by the source."""
        part = self.parts[_whole(split)]
        target, source = (side.offsets[rows + 1] - side.offsets[rows] for side in (part.target, part.source))
        return np.lexsort((source, target))

    def sweep(self, split: Split) -> Iterator[Batch]:
        for index, rows in enumerate(self._swept(split)):
            yield self._padded(split, rows, (self.options.name, split, "sweep", index))

    def _swept(self, split: Split) -> list[np.ndarray]:
        """The rows of each batch of a sweep."""
        if split not in self._sweeps:
            rows, size = self.rows[split], self.options.evaluation_batch
            rows = rows[self._by_length(split, rows)]
            self._sweeps[split] = [rows[start : start + size] for start in range(0, len(rows), size)]
        return self._sweeps[split]

    def _padded(self, split: Split, rows: np.ndarray, key: tuple[Key, ...]) -> Batch:
        part = self.parts[_whole(split)]
        pairs = [(part.source[row], part.target[row]) for row in rows]
        longest = max(max(len(source), len(target)) for source, target in pairs) + 1
        x = np.full((len(rows), 2, longest), PADDING)
        y = np.full((len(rows), longest), PADDING)
        x[:, 1, 0] = BEGIN
        for k, (source, target) in enumerate(pairs):
            x[k, 0, : len(source)], x[k, 0, len(source)] = source, END
            x[k, 1, 1 : len(target) + 1] = target
            y[k, : len(target)], y[k, len(target)] = target, END
        return Batch(torch.from_numpy(x).to(self.device), torch.from_numpy(y).to(self.device), key)

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        """Nats a target piece, ends among them."""
        return F.cross_entropy(output.flatten(0, 1), batch.y.flatten(), ignore_index=PADDING)

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        """`loss`, which papers call log perplexity."""
        return {"loss": self.loss(output.detach(), batch)}

    def score(self, batches: Sequence[Batch], answers: Sequence[list[int]]) -> Metrics:
        """BLEU (0 to 100) of answers to batches of a sweep over valid or test, against the text as written.

        By sacrebleu with the tokenisation `options.tokenize`: 13a is mteval's, on text as it is; "none"
        splits at spaces alone, which on tokenised files is what Moses's multi-bleu does.
        """
        import sacrebleu  # loads slowly

        references = [text for batch in batches for text in self._references(batch)]
        hypotheses = [self.decode(answer) for answer in answers]
        if len(hypotheses) != len(references):
            raise ValueError(f"{len(hypotheses)} answers to {len(references)} sentences")
        bleu = sacrebleu.corpus_bleu(hypotheses, [references], tokenize=self.options.tokenize, force=True)
        return {"bleu": torch.tensor(bleu.score)}

    def _references(self, batch: Batch) -> list[str]:
        """The targets of a batch of a sweep, which its key names."""
        _, split, _, index = batch.key
        if split not in self.references:
            raise ValueError(f"split {split!r} has no references; those of valid and test are kept")
        return [self.references[split][row] for row in self._swept(cast(Split, split))[int(index)]]


def _whole(split: Split) -> str:
    """The part of the corpus that a split is taken from."""
    return split if split in ("valid", "test") else "train"


def _rows(parts: dict[str, Part], options: TranslationOptions) -> dict[str, np.ndarray]:
    """The rows of each split. Raises UserError if training has none left."""
    train = np.arange(len(parts["train"].source))
    if options.longest is not None:
        lengths = np.maximum(parts["train"].source.lengths, parts["train"].target.lengths)
        train = np.flatnonzero(lengths <= options.longest)
    if len(train) < 2:
        raise UserError(
            f"task.longest: got {options.longest}, which leaves {len(train)} training pairs of "
            f"{len(parts['train'].source)}; raise it"
        )
    half = math.ceil(len(train) / 2)
    halves = {"search_train": train[:half], "search_valid": train[half:]}
    evaluated = {split: np.arange(len(parts[split].source)) for split in ("valid", "test")}
    return {"train": train, **halves, **evaluated}


def _read(options: TranslationOptions, data_dir: Path) -> Corpus:
    if options.name == "phrases":
        from tasks.phrases import read as read_phrases

        return read_phrases(options)
    from tasks.wmt14 import read as read_wmt14

    return read_wmt14(options, data_dir)
