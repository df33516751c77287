"""Pictures: every node and edge is there, labels do not cover each other, equal cells give equal bytes."""

import itertools

import pytest
from matplotlib.patches import Circle, FancyArrowPatch

from metalearn.darts.draw import figure, write_svg
from metalearn.darts.genotype import load, published, random_genotype
from metalearn.rng import generator

PLANS = [load(name).normal for name in published()] + [load(name).reduce for name in published()]
PLANS += [random_genotype(4, generator(seed)).normal for seed in range(6)]


@pytest.mark.parametrize("plan", PLANS)
def test_everything_is_drawn_and_can_be_read(plan):
    canvas = figure(plan, "a cell")
    axes = canvas.axes[0]
    nodes = [patch for patch in axes.patches if isinstance(patch, Circle)]
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    assert len(nodes) == 2 + len(plan.nodes) + 1
    assert len(arrows) == 2 * len(plan.nodes) + len(plan.concat)
    operations = sorted(edge.operation for node in plan.nodes for edge in node)
    labels = [text for text in axes.texts if text.get_text() in operations]
    assert sorted(text.get_text() for text in labels) == operations
    canvas.draw_without_rendering()
    boxes = [text.get_window_extent() for text in labels]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert all(canvas.bbox.x0 <= box.x0 and box.x1 <= canvas.bbox.x1 for box in boxes)
    assert all(canvas.bbox.y0 <= box.y0 and box.y1 <= canvas.bbox.y1 for box in boxes)


def test_the_same_cell_gives_the_same_bytes(tmp_path):
    for name in ("a.svg", "b.svg"):
        write_svg(load("darts_v2").normal, "normal cell", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
