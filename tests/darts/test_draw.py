"""Pictures: every node and edge is there, labels do not cover each other, equal cells give equal bytes."""

import itertools

import pytest
from matplotlib.patches import Circle, FancyArrowPatch

from metalearn.darts.draw import figure, recurrent_sketch, sketch, write_svg
from metalearn.darts.genotype import load, random_genotype
from metalearn.darts.recurrent import genotype as recurrent
from metalearn.rng import generator

FOUND = [load(name) for name in ("darts_v1", "darts_v2", "nasnet_a", "amoebanet_a")]
FOUND += [random_genotype(4, generator(seed)) for seed in range(3)]


@pytest.mark.parametrize("genotype", FOUND)
def test_everything_is_drawn_and_can_be_read(genotype):
    canvas = figure({"normal": sketch(genotype.normal), "reduction": sketch(genotype.reduce)})
    assert [axes.texts[0].get_text() for axes in canvas.axes] == ["normal", "reduction"]
    canvas.draw_without_rendering()
    for plan, axes in zip((genotype.normal, genotype.reduce), canvas.axes, strict=True):
        operations = [edge.operation for node in plan.nodes for edge in node]
        assert_readable(axes, canvas.bbox, 2 + len(plan.nodes) + 1, operations, len(plan.concat))


@pytest.mark.parametrize("name", ["darts_rnn_v1", "darts_rnn_v2", "enas_rnn"])
def test_a_recurrent_cell_is_drawn(name):
    genotype = recurrent.load(name)
    canvas = figure({"cell": recurrent_sketch(genotype)})
    canvas.draw_without_rendering()
    operations = [edge.operation for edge in genotype.nodes]
    nodes = 1 + len(genotype.nodes) + 1
    assert_readable(canvas.axes[0], canvas.bbox, nodes, operations, len(genotype.concat))


def assert_readable(axes, page, number, operations, outgoing):
    nodes = [patch for patch in axes.patches if isinstance(patch, Circle)]
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(nodes) == number
    assert len(arrows) == len(operations) + outgoing
    operations = sorted(operations)
    labels = [text for text in axes.texts if text.get_text() in operations]
    assert sorted(text.get_text() for text in labels) == operations
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in boxes)
    assert all(page.y0 <= box.y0 and box.y1 <= page.y1 for box in boxes)


def test_the_same_cell_gives_the_same_bytes(tmp_path):
    for name in ("a.svg", "b.svg"):
        write_svg({"normal cell": sketch(load("darts_v2").normal)}, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
