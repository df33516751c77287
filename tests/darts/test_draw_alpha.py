"""Heat maps and strips of alpha: every number, every frame, the right colour at the right place."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from metalearn.darts.draw_alpha import EMPTY, heat_maps, shade, strip
from metalearn.darts.genotype import CANDIDATES, Genotype, discretise, encode
from metalearn.darts.space import Choices
from metalearn.rng import generator

CHOICES = {
    kind: Choices(CANDIDATES, (2, 2, 3, 3, 3), (0, 1, 0, 1, 2), torch.ones(5, 8, dtype=torch.bool))
    for kind in ("normal", "reduce")
}


def masks(genotype: Genotype) -> dict[str, torch.Tensor]:
    return {"normal": encode(genotype.normal), "reduce": encode(genotype.reduce)}


def cell_of(patch: Rectangle) -> tuple[int, int]:
    """Row and column of a rectangle's middle."""
    x, y = patch.get_center()
    return round(y), round(x)


@pytest.fixture
def strengths():
    rng = generator("strengths")
    return [{k: torch.randn(5, 8, generator=rng).softmax(-1) for k in CHOICES} for _ in range(3)]


def test_heat_map_has_every_number_and_frames_what_is_chosen(strengths):
    found = masks(discretise(strengths[0]["normal"], strengths[0]["reduce"]))
    canvas = heat_maps(strengths[0], found, CHOICES)
    for axes, kind in zip(canvas.axes, CHOICES, strict=True):
        written = [text.get_text() for text in axes.texts]
        assert written == [f"{value:.2f}" for value in strengths[0][kind].flatten().tolist()]
        places = sorted(cell_of(patch) for patch in axes.patches if not patch.get_fill())
        shade_of = {cell_of(patch): sum(patch.get_facecolor()) for patch in axes.patches if patch.get_fill()}
        darkest = np.unravel_index(strengths[0][kind].argmax(), (5, 8))
        assert min(shade_of, key=shade_of.get) == darkest
        assert places == [tuple(place) for place in found[kind].nonzero().tolist()]
        assert [label.get_text() for label in axes.get_yticklabels()][-1] == "2 → 3"


def test_strip_colours_each_edge_by_the_operation_that_it_keeps(strengths):
    chosen = [masks(discretise(leaf["normal"], leaf["reduce"])) for leaf in strengths]
    canvas = strip([10, 20, 30], chosen, CHOICES)
    for axes, kind in zip(canvas.axes, CHOICES, strict=True):
        shown = {cell_of(patch): patch.get_facecolor()[:3] for patch in axes.patches}
        for time, edge in np.ndindex(3, 5):
            row = chosen[time][kind][edge]
            colour = shade(CANDIDATES[int(row.int().argmax())]) if row.any() else EMPTY
            np.testing.assert_allclose(shown[edge, time], to_rgb(colour))


def test_operations_of_one_kind_are_told_apart():
    shades = [shade(name) for name in CANDIDATES if name != "none"]
    assert len(set(shades)) == len(shades)
