"""Word pieces of both languages together, learned from a training text by sentencepiece."""

import io
from collections.abc import Iterable, Sequence

import sentencepiece

from metalearn.registry import UserError
from metalearn.task import BEGIN, END, PADDING

UNKNOWN = 3
SEED = 0


class WordPieces:
    """Byte pair encoding with PADDING, BEGIN, END and UNKNOWN in front.

    Characters stay as they are, but for white space, of which runs become one space.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def learn(cls, sentences: Iterable[str], count: int, coverage: float) -> "WordPieces":
        """`count` pieces that cover this share of all characters; a function of the sentences alone.

        Raises UserError if they are too few for so many pieces.
        """
        written = io.BytesIO()
        sentencepiece.set_random_generator_seed(SEED)
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(sentences),
                model_writer=written,
                model_type="bpe",
                vocab_size=count,
                character_coverage=coverage,
                normalization_rule_name="identity",
                pad_id=PADDING,
                bos_id=BEGIN,
                eos_id=END,
                unk_id=UNKNOWN,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            message = str(error).splitlines()[0]
            few = "smaller than required_chars" in message
            raise UserError(
                f"task.pieces: got {count}, which sentencepiece does not make of this text: {message}; "
                f"{'raise it, or lower task.coverage' if few else 'lower it, or give more text'}"
            ) from None
        return cls(written.getvalue())

    def __len__(self) -> int:
        return self._processor.vocab_size()

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """Symbols of each sentence, without BEGIN and END."""
        return self._processor.encode(list(sentences))

    def decode(self, symbols: Sequence[int]) -> str:
        """The text of symbols, those that are no pieces left out; an unknown one is a question mark."""
        return self._processor.decode([symbol for symbol in symbols if symbol not in (PADDING, BEGIN, END)])
