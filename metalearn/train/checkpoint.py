"""Checkpoints: whole or absent, checked before they are read, never unpickled."""

import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from metalearn.registry import UserError
from metalearn.rng import seed_of
from metalearn.train.console import say
from metalearn.train.files import remove_stale, replacing, sync_folder
from metalearn.train.provenance import version

FORMAT = 1  # of the dictionary in a checkpoint file
BEST = "best.pt"

State = dict[str, Any]


class Damaged(Exception):  # noqa: N818
    """A checkpoint file that must not be used."""


class Restored(NamedTuple):
    """A checkpoint that was read."""

    path: Path
    state: State


def save(path: Path, state: State) -> None:
    """Write `state`, plain containers of tensors and numbers, in the place of `path`.

    Raises UserError naming the file if it cannot be written; an older file of that name stays intact.
    """
    try:
        with replacing(path) as file:
            torch.save({"format": FORMAT, "suite": version("metalearn"), **state}, file)
    except (OSError, RuntimeError) as error:
        reason = _system_error(error)
        if reason is None:
            raise
        raise UserError(
            f"{path}: cannot write the checkpoint: {reason}; older checkpoints are intact: "
            "free some space and run the same command again"
        ) from error


def load(path: Path) -> State:
    """The state in `path`, its tensors on the devices they were saved from, as far as these exist here.

    Raises Damaged if the file is torn, altered or not what `save` writes, and UserError if another version
    of the suite wrote it in another format.
    """
    _inspect(path)
    place = None if torch.cuda.is_available() else "cpu"
    try:
        state = torch.load(path, map_location=place, weights_only=True)
    except Exception as error:
        raise Damaged(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or "format" not in state:
        raise Damaged("not a checkpoint of this suite")
    if state["format"] != FORMAT:
        raise UserError(
            f"{path}: format {state['format']} of metalearn {state.get('suite', '?')}; this is metalearn "
            f"{version('metalearn')} and reads format {FORMAT}; run that version, or start "
            "a new run directory"
        )
    return state


def read_newest(folder: Path) -> Restored | None:
    """The newest sound checkpoint in `folder`. Touches no file: the run may be going on."""
    for path in _by_step(folder):
        try:
            return Restored(path, load(path))
        except Damaged:  # torn, or dropped by the run meanwhile
            continue
    return None


def read_best(folder: Path, step: int) -> Restored | None:
    """The best checkpoint in `folder`, if it is sound and of that step. Touches no file."""
    path = folder / BEST
    if not path.exists():
        return None
    try:
        state = load(path)
    except Damaged as error:
        say(f"{path}: damaged ({error})")
        return None
    return Restored(path, state) if state["step"] == step else None


def _by_step(folder: Path) -> list[Path]:
    """Checkpoints by step, the newest first."""
    return sorted(folder.glob("step_*.pt"), reverse=True)


class Checkpoints:
    """The folder of a run's checkpoints: the last few by step, and a copy of the best."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        folder.mkdir(exist_ok=True)
        remove_stale(folder)

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self._folder / f"step_{step:010d}.pt"

    def save(self, state: State, best: bool) -> Path:
        """Write the checkpoint of `state["step"]`, as the best one too if it is, and drop the oldest."""
        path = self.path(state["step"])
        save(path, state)
        if best:
            save(self._folder / BEST, state)
        for old in _by_step(self._folder)[self._keep :]:
            old.unlink(missing_ok=True)
        return path

    def newest(self) -> Restored | None:
        """The newest sound checkpoint. A damaged one is set aside as `*.damaged`, and this is said."""
        for path in _by_step(self._folder):
            try:
                return Restored(path, load(path))
            except Damaged as error:
                path.replace(path.with_name(path.name + ".damaged"))
                sync_folder(self._folder)
                say(f"{path}: damaged ({error}); set aside as {path.name}.damaged")
        return None

    def best(self, step: int) -> Restored | None:
        """The best checkpoint, if it is sound and of that step."""
        return read_best(self._folder, step)


def random_state() -> State:
    """Where all global generators stand, in plain containers."""
    name, keys, position, has_gauss, gauss = numpy.random.get_state()
    version, internal, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": [version, list(internal), gauss_next],
        "numpy": [str(name), [int(key) for key in keys], int(position), int(has_gauss), float(gauss)],
    }


def set_random_state(state: State) -> None:
    """Put all global generators where they stood."""
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, *rest = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), *rest))


def seed_all(seed: int) -> None:
    """Start all global generators from a run's seed. Methods draw from `rng`; this is for foreign code."""
    torch.manual_seed(seed_of(seed, "torch"))
    random.seed(seed_of(seed, "python"))
    numpy.random.seed(seed_of(seed, "numpy") % 2**32)


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of nested containers with their places, e.g. ("weights/fc.bias", tensor)."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors(part, f"{name}/{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from tensors(part, f"{name}/{index}" if name else str(index))


def _inspect(path: Path) -> None:
    """Refuse what torch.load does not notice: flipped bits, compressed members that unpack without end."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise Damaged("it has compressed members, which a checkpoint never has")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise Damaged("its members claim more bytes than the file has")
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, ValueError) as error:
        raise Damaged(f"unreadable: {error}") from error
    if broken is not None:
        raise Damaged(f"checksum of {broken} does not hold")


def _system_error(error: BaseException | None) -> str | None:
    """The system's reason behind an error of torch.save, if there is one."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        if "PytorchStreamWriter" in str(error) or "file write failed" in str(error):
            return "the disk is full or a quota is used up"
        error = error.__cause__ or error.__context__
    return None
