"""Language modelling: predict the next symbol of a text that is read as one long sequence."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F

from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Metrics, Split, Task, TaskSpec
from tasks import windows
from tasks.config import TextOptions
from tasks.examples import digest

ENDS = ("\n", "<eos>", " ")  # what a text is begun after: the first of these that the alphabet has


class Text(Task):
    """Symbols of a text; every symbol but the first is a target.

    Splits are contiguous: as the corpus gives them, or 90 % train, 5 % valid and 5 % test in this order;
    `search_train` and `search_valid` are the first and the second half of `train`.

    `batch` lays the split out in `batch` rows and reads them from left to right, `time` symbols at a time:
    consecutive indices continue each other, after `batches(split)` all rows start again. What does not fill
    a batch is left out. With jitter (see `windows`) times differ, each pass draws its own by the run's seed,
    and leaves nothing out. `sweep` reads the whole split in `evaluation_batch` rows (test: `test_batch`)
    with a shorter last batch; the fewer symbols than rows that do not fill a row are left out, none with one.
    """

    def __init__(
        self, options: TextOptions, seed: int, data_dir: Path, download: bool, device: torch.device
    ) -> None:
        from tasks.corpora import read

        corpus = read(options.name, data_dir, download)
        windows.check(options)
        self.options, self.seed, self.words = options, seed, corpus.words
        self.jittered = windows.is_jittered(options)
        self.mean_time = windows.mean_time(options) if self.jittered else options.time
        self.spans: dict[Split, tuple[int, list[windows.Span]]] = {}  # by split: a pass, its windows
        self.alphabet = corpus.alphabet
        self.places = {symbol: place for place, symbol in enumerate(corpus.alphabet)}
        self.bytewise = isinstance(corpus.parts["train"], bytes)
        kind = torch.int16 if len(corpus.alphabet) <= torch.iinfo(torch.int16).max else torch.int32
        kind = torch.uint8 if self.bytewise else kind
        parts = {split: self._encode(part).to(kind) for split, part in corpus.parts.items()}
        half = math.ceil(len(parts["train"]) / 2)
        parts |= {"search_train": parts["train"][:half], "search_valid": parts["train"][half:]}
        self.symbols = {split: part.to(device) for split, part in parts.items()}
        self.spec = TaskSpec(
            name=options.name,
            kind="language_model",
            input_shape=(),
            outputs=len(corpus.alphabet),
            sizes={split: len(part) for split, part in parts.items()},
            metric="perplexity" if corpus.words else "bits",
            source=corpus.source,
            licence=corpus.licence,
            provenance=corpus.provenance,
            digest=digest(*(parts[split] for split in ("train", "valid", "test"))),
        )
        self.batches("train")  # refuses a batch that is too large before anything runs

    def encode(self, text: str | Sequence[str]) -> Int64[Tensor, " time"]:
        """Symbols as places in the alphabet; words part at spaces, bytes are those of UTF-8.

        Raises UserError for one that is not in it.
        """
        return self._encode(text).long()

    def _encode(self, text: str | bytes | Sequence[str]) -> Int[Tensor, " time"]:
        if self.bytewise and isinstance(text, str):
            text = text.encode()
        if isinstance(text, bytes):
            return self._encode_bytes(text)
        if isinstance(text, str) and not self.words:
            return self._encode_characters(text)
        text = text.split() if isinstance(text, str) else text
        try:
            return torch.tensor([self.places[symbol] for symbol in text], dtype=torch.int64)
        except KeyError as error:
            raise self._unknown(error.args[0]) from None

    def _encode_bytes(self, text: bytes) -> UInt8[Tensor, " time"]:
        """The same for bytes, with no more memory than theirs: there may be a hundred million."""
        known = bytes(map(ord, self.alphabet))
        unknown = text.translate(None, delete=known)
        if unknown:
            raise self._unknown(chr(unknown[0]))
        placed = text.translate(bytes.maketrans(known, bytes(range(len(known)))))
        return torch.frombuffer(bytearray(placed), dtype=torch.uint8)

    def _encode_characters(self, text: str) -> Int64[Tensor, " time"]:
        """The same by one look-up in a table of code points."""
        codes = np.frombuffer(text.encode("utf-32-le"), np.dtype("<u4"))
        table = np.full(max(map(ord, self.alphabet)) + 2, -1)
        table[[ord(symbol) for symbol in self.alphabet]] = range(len(self.alphabet))
        places = table[np.minimum(codes, len(table) - 1)]
        if (places < 0).any():
            raise self._unknown(chr(codes[places < 0][0]))
        return torch.from_numpy(places)

    def _unknown(self, symbol: str) -> UserError:
        allowed = " ".join(map(repr, self.alphabet[:100]))
        return UserError(
            f"{symbol!r} is not among the {len(self.alphabet)} symbols of {self.options.name}; "
            f"allowed: {allowed}"
        )

    def decode(self, symbols: Int[Tensor, " time"]) -> str:
        """The text that `encode` reads; words are joined by spaces, bytes that are no UTF-8 become U+FFFD."""
        if self.bytewise:
            codes = bytes(ord(self.alphabet[place]) for place in symbols.tolist())
            return codes.decode(errors="replace")
        return (" " if self.words else "").join(self.alphabet[place] for place in symbols.tolist())

    @property
    def opening(self) -> Int64[Tensor, ""]:
        """The end of a line, or of a word: what a text is begun after."""
        place = next((self.places[symbol] for symbol in ENDS if symbol in self.places), 0)
        return torch.tensor(place, device=self.symbols["train"].device)

    def draw(
        self, output: Float[Tensor, "batch outputs"], rng: Generator, temperature: float
    ) -> Int64[Tensor, " batch"]:
        """Symbols drawn from the softmax of logits / temperature; at temperature 0 the likeliest."""
        if temperature == 0:
            return output.argmax(dim=1)
        logits = output.double()
        shares = ((logits - logits.amax(dim=1, keepdim=True)) / temperature).softmax(dim=1)
        below = shares.cumsum(dim=1)
        place = torch.rand(len(output), 1, dtype=torch.float64, generator=rng).to(output.device)
        found = torch.searchsorted(below, place * below[:, -1:], right=True)
        return found[:, 0].clamp(max=output.shape[1] - 1)

    def batches(self, split: Split) -> int:
        rows, time, columns = self.options.batch, self.options.time, self._columns(split)
        count = round(columns / self.mean_time) if self.jittered else columns // time
        if not count:
            raise UserError(
                f"task.batch x task.time: got {rows} x {time}, must be below {len(self.symbols[split])}, "
                f"the symbols of {self.options.name}'s split {split}"
            )
        return count

    def batch(self, split: Split, index: int) -> Batch:
        turn, place = divmod(index, self.batches(split))
        key = (self.seed, self.options.name, split, index)
        start, time = place * self.options.time, self.options.time
        if self.jittered:
            start, time = self._spans(split, turn)[place]
        return self._window(split, self.options.batch, start, time, key)

    def _columns(self, split: Split) -> int:
        return (len(self.symbols[split]) - 1) // self.options.batch

    def _spans(self, split: Split, turn: int) -> list[windows.Span]:
        """The windows of pass number `turn`, kept until another is asked for: a function of the key."""
        known = self.spans.get(split)
        if known is None or known[0] != turn:
            rng = generator(self.seed, self.options.name, split, "times", turn)
            drawn = windows.spans(self.options, self._columns(split), self.batches(split), rng)
            known = self.spans[split] = turn, drawn
        return known[1]

    def sweep(self, split: Split) -> Iterator[Batch]:
        rows, time = self.options.evaluation_batch, self.options.evaluation_time
        if split == "test":
            rows = self.options.test_batch or rows
        length = (len(self.symbols[split]) - 1) // rows
        for index, start in enumerate(range(0, length, time)):
            key = (self.options.name, split, "sweep", index)
            yield self._window(split, rows, start, min(time, length - start), key)

    def _window(self, split: Split, rows: int, start: int, time: int, key: tuple[str | int, ...]) -> Batch:
        """Columns [start, start + time) of the split in equal rows, targets one symbol ahead."""
        symbols = self.symbols[split]
        length = (len(symbols) - 1) // rows
        shape, stride = (rows, time + 1), (length, 1)
        window = symbols.as_strided(shape, stride, symbols.storage_offset() + start).long()
        return Batch(window[:, :-1], window[:, 1:], key)

    def loss(self, output: Tensor, batch: Batch) -> Float[Tensor, ""]:
        return F.cross_entropy(output.flatten(0, 1), batch.y.flatten())

    def metrics(self, output: Tensor, batch: Batch) -> Metrics:
        """Loss in nats a symbol; bits a character, the same in another unit.

        Perplexity is no mean over batches: whoever averages the loss of words reports its exponential.
        """
        loss = self.loss(output.detach(), batch)
        return {"loss": loss} if self.words else {"loss": loss, "bits": loss / math.log(2)}
