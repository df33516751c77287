"""Genotypes edge by edge, and what learned optimizers make of a gradient."""

import json
from pathlib import Path

import numpy
import pytest

from metalearn.compare import build, genotypes, updates
from metalearn.compare.entry import Told, entry
from metalearn.compare.model import Series

FIRST = [[["sep_conv_3x3", 0], ["skip_connect", 1]], [["max_pool_3x3", 0], ["sep_conv_3x3", 2]]]
OTHER = [[["sep_conv_3x3", 1], ["dil_conv_3x3", 0]], [["max_pool_3x3", 0], ["skip_connect", 1]]]


@pytest.fixture
def left_by(tmp_path):
    """`left_by(method, seed, {file: text})`: an entry whose run left these artifacts."""

    def make(method: str, seed: int, files: dict[str, str]):
        folder = tmp_path / f"{method}{seed}" / "artifacts"
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        config = {"seed": seed, "name": "toy", "task": {"name": "t"}, "method": {"name": method}}
        series = {"valid/error": Series(numpy.arange(2), numpy.ones(2))}
        return entry(
            Told(str(folder.parent), "local", config, series, "finished", 2, "", {"artifacts": folder})
        )

    return make


def cells(nodes):
    cell = {"nodes": nodes, "concat": [2, 3]}
    return json.dumps({"format": "metalearn.genotype.cnn", "version": 1, "normal": cell, "reduce": cell})


def test_cells_edge_by_edge(left_by):
    svg = "<svg xmlns='http://www.w3.org/2000/svg'/>"
    runs = [
        left_by("darts", 0, {"genotype.json": cells(FIRST), "genotype.svg": svg, "cell_normal.svg": svg}),
        left_by("darts", 1, {"genotype.json": cells(FIRST)}),
        left_by("darts", 2, {"genotype.json": cells(OTHER)}),
        left_by("random", 0, {"genotype.json": cells(OTHER)}),
        left_by("retrain", 0, {"genotype.json": cells(OTHER)}),
    ]

    found = build(runs)

    words = "\n".join(found.words)
    assert "method=retrain has the cells of method=random" in words
    assert (
        "method=darts, normal cell, edges by operation (mean of 3 runs): "
        "sep_conv_3x3 1.67, skip_connect 1, max_pool_3x3 1, dil_conv_3x3 0.333" in words
    )
    assert (  # two of three seeds have the first genotype
        "method=darts / method=random, normal cell (the majority over seeds): of 4 edges 1 the same, 2 with "
        "another operation (0 to 2 sep_conv_3x3 / dil_conv_3x3; 1 to 2 skip_connect / sep_conv_3x3), "
        "1 from another input (node 3: sep_conv_3x3 from 2 / skip_connect from 1)" in words
    )
    assert [(picture.title, picture.caption) for picture in found.pictures] == [
        ("method=darts: genotype", "Seed 0.")
    ]


def test_all_published_cells_are_read():
    folder = Path(genotypes.__file__).parents[1] / "darts" / "genotypes"
    sizes = {
        path.stem: [len(cell) for cell in genotypes.read(path).values()] for path in folder.glob("*.json")
    }
    assert sizes["darts_v2"] == [8, 8]
    assert sizes["nasnet_a"] == sizes["amoebanet_a"] == [10, 10]  # two edges may come from one node
    assert sizes["darts_rnn_v2"] == [8]


def test_broken_files_are_no_cells(tmp_path):
    for text in ("", "[]", '{"format": "metalearn.genotype.cnn"}', '{"format": "x"}'):
        (tmp_path / "genotype.json").write_text(text)
        assert genotypes.read(tmp_path / "genotype.json") == {}


def proposed(slope: float, reach: float) -> str:
    """Updates of `slope` times the gradient; two steps whose mean is that."""
    gradients = numpy.linspace(-reach, reach, 11)
    steps = [(slope - 0.1) * gradients, (slope + 0.1) * gradients]
    return json.dumps(
        {"varied": gradients.tolist(), "proposed": {"learned optimizer": numpy.array(steps).tolist()}}
    )


def test_updates_are_held_against_each_other_where_all_were_asked(left_by):
    runs = [
        left_by("lstm", 0, {"updates.json": proposed(-1.0, 2.0)}),
        left_by("lstm", 1, {"updates.json": proposed(-1.2, 4.0)}),
        left_by("mlp", 0, {"updates.json": proposed(-0.5, 3.0)}),
        left_by("broken", 0, {"updates.json": '{"varied": [1, 0], "proposed": {}}'}),
    ]

    found = build(runs)

    grid = updates.common({"x": [one for run in runs if (one := updates.read(run))]})
    assert (grid[0], grid[-1]) == (-2.0, 2.0)
    size = numpy.abs(grid).mean()
    apart = (0.5 + 0.7) / 2 * size
    assert found.words == (
        f"method=lstm: updates of {1.1 * size:.4g} on average, {0.2 * size:.4g} apart between seeds",
        f"method=lstm / method=mlp: updates differ by {apart:.4g} on average, "
        f"{apart / (size * (1.0 + 1.2 + 0.5) / 3):.0%} of their mean size",
    )
    (picture,) = found.pictures
    assert picture.svg.count("method=mlp") == 1
    assert "from -2 to 2" in picture.caption
