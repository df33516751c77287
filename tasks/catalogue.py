"""Which tasks can be had here, by a look at which files there are: imports no torch, reads no file."""

from pathlib import Path

from tasks import iam_files, sources, wmt14_files
from tasks.files import DataFile, cache_dir, find, missing

# every list is enough by itself; the first names what to get
_NEEDED: dict[str, list[list[DataFile]]] = {
    "mnist": [list(sources.MNIST.values())],
    "cifar10": [[sources.CIFAR10_ARCHIVE], sources.CIFAR10_BATCHES, sources.CIFAR10_LOSSY],
    "ptb_char": [list(sources.PTB.values())],
    "ptb_word": [list(sources.PTB.values())],
    "omniglot": [sources.OMNIGLOT],
    "tiny_shakespeare": [[sources.TINY_SHAKESPEARE]],
    "enwik8": [[sources.ENWIK8]],
    "wikitext2": [[sources.WIKITEXT2_ARCHIVE], list(sources.WIKITEXT2.values())],
}


def availability(name: str, data_dir: Path) -> str:
    """embedded, in data_dir, cached, or missing and what to do about it; known-lossy copies are marked."""
    if name == "imagenet":
        return _imagenet(data_dir)
    if name == "iam":
        return iam_files.availability(data_dir)
    if name == "wmt14_en_fr":
        lacking = wmt14_files.missing(data_dir)
        return f"missing: put {'; '.join(lacking)} under {data_dir}" if lacking else "in data_dir"
    if name == "neural_art":
        here = any((folder / sources.VGG19).is_file() for folder in (data_dir, cache_dir()))
        return "embedded" if here else f"embedded, random features: no {sources.VGG19} in data_dir"
    if name not in _NEEDED:
        return "embedded"
    here = next((files for files in _NEEDED[name] if not missing(files, data_dir)), None)
    if here is None:
        lacking = ", ".join(file.places[0] + file.instead for file in missing(_NEEDED[name][0], data_dir))
        return f"missing: put {lacking} under {data_dir}, or let download=true fetch it"
    paths = [find(file, data_dir) for file in here]
    place = "in data_dir" if all(path and path.is_relative_to(data_dir) for path in paths) else "cached"
    return f"{place}, lossy copy: not comparable" if here is sources.CIFAR10_LOSSY else place


def _imagenet(data_dir: Path) -> str:
    """By its folders alone: a million files are not looked at."""
    lacking = [part for part in ("train", "val") if not (data_dir / "imagenet" / part).is_dir()]
    if not lacking:
        return "in data_dir"
    folders = ", ".join(f"imagenet/{part}/<wnid>/*.JPEG" for part in lacking)
    return f"missing: put {folders} under {data_dir}; its licence forbids to fetch it"
