"""IAM-OnDB: lines that people wrote on a whiteboard (Liwicki and Bunke 2005)."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from metalearn.registry import UserError
from tasks import iam_files
from tasks.config import IamOptions
from tasks.decoded import decoded
from tasks.handwriting import Handwriting, Lines

LINES = 12_179  # of 221 writers, in the four lists together
TRAIN, VALID, OTHER, TEST = iam_files.LISTS
SPLITS = {  # lists by split; Graves 2013, section 4.2 (from memory): no test set, the smaller list validates
    "graves": {"train": (TRAIN, OTHER, TEST), "valid": (VALID,), "test": ()},
    "official": {"train": (TRAIN,), "valid": (VALID, OTHER), "test": (TEST,)},
}


class Iam(Handwriting):
    """Lines of IAM-OnDB from your own copy, y downwards, in the order of their names.

    A move is the difference of two points, across lifted pens too; nothing is smoothed or left out but the
    lines of fewer than `least_points` points. Lists of forms make the splits, so that lines of one text lie
    in one of them.
    """

    def __init__(
        self,
        options: IamOptions,
        seed: int,
        data_dir: Path,
        download: bool,  # noqa: ARG002 (its licence forbids that)
        device: torch.device,
    ) -> None:
        super().__init__(options, seed, _lines(options, data_dir), device)


def _lines(options: IamOptions, data_dir: Path) -> Lines:
    strokes, lists = iam_files.found(data_dir)
    kept = decoded("iam", iam_files.digests(strokes), partial(_tensors, strokes))
    names = bytes(kept["names"].tolist()).decode().split()
    forms = {path.name: set(iam_files.forms(path)) for path in lists}
    _check_lists(forms)
    listed = {name: _of_forms(names, chosen) for name, chosen in forms.items()}
    lengths = kept["lengths"]
    rows = {
        split: [row for name in parts for row in listed[name] if lengths[row] >= options.least_points]
        for split, parts in SPLITS[options.split].items()
    }
    _check_rows(options, rows)
    moves = _moves(kept["points"], lengths, [row for split in rows.values() for row in split])
    total = sum(map(len, listed.values()))
    left_out = total - len(moves)
    said = f"{total} lines in {len(set().union(*forms.values()))} forms, found in data_dir"
    return Lines(
        moves=torch.cat(moves),
        lengths=torch.tensor([len(line) for line in moves]),
        ranges=_ranges({split: len(part) for split, part in rows.items()}),
        source="Liwicki and Bunke 2005, IAM On-Line Handwriting Database: 12,179 lines by 221 writers",
        licence="non-commercial research, after registration; not to be passed on",
        provenance=f"{said if total == LINES else said + ': not the whole set, not comparable'}; split "
        f"{options.split}; {left_out} of fewer than {options.least_points} points left out",
        comparable=total == LINES,
    )


def _tensors(strokes: Path, _: list[bytes]) -> dict[str, Tensor]:
    """All lines: their names as bytes, points one after another, and how many points each has."""
    lines = [line for line in iam_files.lines(strokes) if line.points]
    if not lines:
        raise UserError(
            f"{strokes}: holds no lines, such as a01/a01-000/a01-000u-01.xml; put a good copy there"
        )
    return {
        "names": torch.tensor(list("\n".join(line.name for line in lines).encode()), dtype=torch.uint8),
        "points": torch.cat([torch.tensor(line.points, dtype=torch.float32) for line in lines]),
        "lengths": torch.tensor([len(line.points) for line in lines]),
    }


def _moves(points: Tensor, lengths: Tensor, rows: list[int]) -> list[Tensor]:
    """The moves [time 3] of each line that `rows` names."""
    every = points.split(lengths.tolist())
    return [torch.cat([every[row][:, :2].diff(dim=0), every[row][1:, 2:]], dim=1) for row in rows]


def _of_forms(names: list[str], forms: Iterable[str]) -> list[int]:
    chosen = set(forms)
    return [row for row, name in enumerate(names) if name.rpartition("-")[0] in chosen]


def _ranges(sizes: dict[str, int]) -> dict[str, range]:
    ranges, first = {}, 0
    for split, size in sizes.items():
        ranges[split] = range(first, first + size)
        first += size
    return ranges


def _check_lists(forms: dict[str, set[str]]) -> None:
    """Refuse lists that share a form: splits would share lines."""
    seen: dict[str, str] = {}
    for name, chosen in forms.items():
        for form in sorted(chosen):
            if form in seen:
                raise UserError(
                    f"task iam: form {form} is in {seen[form]} and in {name}; put good copies there"
                )
            seen[form] = name


def _check_rows(options: IamOptions, rows: dict[str, list[int]]) -> None:
    for split, parts in SPLITS[options.split].items():
        if parts and len(rows[split]) < 2:
            raise UserError(
                f"task iam: the forms of {', '.join(parts)} have {len(rows[split])} lines of at least "
                f"{options.least_points} points among the strokes, for split {split}; lower "
                "task.least_points, or put whole copies of lists and strokes there"
            )
