"""`metalearn sample`: text, handwriting or translations from a run's checkpoint."""

import math
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from metalearn.build import Parts
from metalearn.generation import generate
from metalearn.network import Annotated, Network, Translator
from metalearn.registry import UserError, name_of
from metalearn.restore import restore
from metalearn.rng import generator, seeded
from metalearn.supervised import Supervised
from metalearn.task import Continued, Pictured, Task, Written

LENGTH, COUNT, SENTENCES = 300, 1, 5  # what is made where nothing else is asked for
LONGEST, MOST = 1_000_000, 10_000  # beyond these memory goes, and no answer comes
PICTURES = 0x2400  # Unicode's pictures of control characters


@dataclass(frozen=True)
class Request:
    """What is asked for; None: nothing was said of it."""

    text: str | None = None  # a prompt, or what is to be translated
    length: int | None = None  # symbols or moves
    temperature: float | None = None
    seed: int | None = None
    count: int | None = None


class Sample(NamedTuple):
    """What was made: texts to be shown, and files."""

    texts: list[str]
    files: list[Path]


Maker = Callable[[Network, Task, Request, Path], Sample]


def sample(run: Path, request: Request, folder: Path) -> Sample:
    """Generate from a run's checkpoint, the best one if the run selects it; pictures go into `folder`.

    Language models go on with a prompt, handwriting is a picture, translations are those of the text or of
    the first test sentences, beside the source and the reference. The same seed gives the same sample.
    Raises UserError.
    """
    _check(request)
    parts = restore(run, "sample from")
    make, method = _maker(run, parts), parts.method
    assert isinstance(method, Supervised)
    network = method.network.eval()
    network.fused = False
    with method.averaging.averaged(), torch.no_grad(), seeded(request.seed or 0, "sample"):
        return make(network, parts.task, request, folder)


def shown(text: str) -> str:
    """A text for a terminal: control characters but newlines and tabs by their pictures."""
    return "".join(character if character in "\n\t" else picture_of(character) for character in text)


def picture_of(character: str) -> str:
    """A character as it can be shown."""
    if not unicodedata.category(character).startswith("C"):
        return character
    return chr(PICTURES + ord(character)) if ord(character) < 32 else "\ufffd"


def _check(request: Request) -> None:
    for name, least, most in (("length", 1, LONGEST), ("count", 1, MOST), ("seed", 0, None)):
        value = getattr(request, name)
        if value is not None and value < least:
            raise UserError(f"--{name}: got {value}, must be at least {least}")
        if value is not None and most is not None and value > most:
            raise UserError(f"--{name}: got {value}, must be at most {most:,}")
    temperature = request.temperature
    if temperature is not None and not (math.isfinite(temperature) and temperature >= 0):
        raise UserError(
            f"--temperature: got {temperature}, must be a finite number of at least 0; 1 is the model "
            "itself, 0 always takes the likeliest"
        )


def _maker(run: Path, parts: Parts) -> Maker:
    kind = parts.task.spec.kind
    makers: dict[str, Maker] = {"language_model": _go_on, "handwriting": _write, "translation": _translate}
    if kind not in makers:
        raise UserError(
            f"{run}: a {kind} run has nothing to generate; take a run on a task of kind {', '.join(makers)}"
        )
    if not isinstance(parts.method, Supervised):
        raise UserError(
            f"{run}: method {name_of('method', parts.method)} trains no network of its own to generate from; "
            "take a run of method supervised, e.g. the retraining of what this one found"
        )
    return makers[kind]


def _go_on(network: Network, task: Task, request: Request, folder: Path) -> Sample:
    """Texts with their prompt; and what the network shows of its reading of them, where it does."""
    assert isinstance(task, Continued)
    assert isinstance(task, Written)
    opening = task.opening
    given = task.encode(request.text or "").to(opening.device)
    followed = _follow(network, task, given if len(given) else opening[None], request)
    read = [torch.cat([given, row]) for row in followed.unbind(0)]
    files = []
    if isinstance(network, Annotated):
        for path, symbols in zip(_paths(folder, "weight_change", len(read)), read, strict=True):
            words = [task.decode(symbol) for symbol in symbols.split(1)]
            files.append(_saved(path, network.annotate(symbols, words)))
    return Sample([task.decode(symbols) for symbols in read], files)


def _write(network: Network, task: Task, request: Request, folder: Path) -> Sample:
    """A picture of each line."""
    assert isinstance(task, Continued)
    assert isinstance(task, Pictured)
    if request.text is not None:
        raise UserError("--text: handwriting is not written after a text here; leave it out")
    lines = _follow(network, task, task.opening[None], request)
    paths = _paths(folder, "sample", len(lines))
    return Sample([], [_saved(path, task.picture(line)) for path, line in zip(paths, lines, strict=True)])


def _translate(network: Network, task: Task, request: Request, folder: Path) -> Sample:  # noqa: ARG001
    """The text's translation, or those of test sentences with source and reference."""
    if not isinstance(network, Translator) or not isinstance(task, Written):
        raise UserError(f"network {type(network).__name__} does not translate; take a run of one that does")
    for name in ("length", "temperature", "seed"):
        if getattr(request, name) is not None:
            raise UserError(f"--{name}: translations are found by search and not drawn; leave it out")
    if request.text is None:
        return Sample(_beside_references(network, task, request.count or SENTENCES), [])
    if request.count is not None:
        raise UserError("--count: a text has one translation here; leave out --count or --text")
    if not request.text.strip():
        raise UserError("--text: got nothing to translate; give a sentence")
    source = task.encode(request.text).to(next(network.parameters()).device)
    return Sample([task.decode(torch.tensor(network.translate(source[None])[0], dtype=torch.int64))], [])


def _beside_references(network: Translator, task: Task, count: int) -> list[str]:
    """Test sentences from the shortest to the longest, in equal steps of the sweep's order."""
    assert isinstance(task, Written)
    pairs = [pair for batch in task.sweep("test") for pair in zip(batch.x[:, 0], batch.y, strict=True)]
    texts = []
    for place in torch.linspace(0, len(pairs) - 1, min(count, len(pairs))).round().long().tolist():
        source, target = pairs[place]
        answer = torch.tensor(network.translate(source[None])[0], dtype=torch.int64)
        lines = {"source": source, "reference": target, "translation": answer}
        texts.append("\n".join(f"{name:<12} {task.decode(symbols)}" for name, symbols in lines.items()))
    return texts


def _follow(network: Network, task: Continued, prompt: Tensor, request: Request) -> Tensor:
    """[count length ...]: what comes after the prompt [read ...]."""
    return generate(
        network,
        task,
        prompt.expand(request.count or COUNT, *prompt.shape),
        request.length or LENGTH,
        generator(request.seed or 0, "sample"),
        1.0 if request.temperature is None else request.temperature,
    )


def _paths(folder: Path, stem: str, count: int) -> list[Path]:
    names = [stem] if count == 1 else [f"{stem}_{number}" for number in range(1, count + 1)]
    return [folder / f"{name}.svg" for name in names]


def _saved(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); name another folder by --output") from None
    return path
