"""What runs left behind, held against each other: genotypes and learned optimizers."""

from collections.abc import Sequence

from metalearn.compare import genotypes, updates
from metalearn.compare.model import Group, Picture


def differences(groups: Sequence[Group]) -> tuple[tuple[str, ...], tuple[Picture, ...]]:
    """Words and pictures; none where no run left such a thing."""
    parts = [genotypes.of(groups), updates.of(groups)]
    words = tuple(sentence for told, _ in parts for sentence in told)
    return words, tuple(picture for _, drawn in parts for picture in drawn)
