"""Which tasks can be had here, by a look at the files alone."""

from pathlib import Path

from tasks import sources
from tasks.files import DataFile, missing

_NEEDED: dict[str, list[list[DataFile]]] = {  # any one list is enough
    "mnist": [list(sources.MNIST.values())],
    "cifar10": [sources.CIFAR10_BATCHES, [sources.CIFAR10_ARCHIVE], sources.CIFAR10_LOSSY],
    "ptb_char": [list(sources.PTB.values())],
    "ptb_word": [list(sources.PTB.values())],
    "tiny_shakespeare": [[sources.TINY_SHAKESPEARE]],
}


def availability(name: str, data_dir: Path) -> str:
    """Embedded, in data_dir, or missing and what to do about it."""
    if name not in _NEEDED:
        return "embedded"
    if any(not missing(files, data_dir) for files in _NEEDED[name]):
        return f"in {data_dir}"
    first = missing(_NEEDED[name][0], data_dir)[0].places[0]
    return (
        f"missing: put {first} ... under {data_dir}, set data_dir=PATH, or run with a network to download it"
    )
