"""What is in a page's file, without a browser."""

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest

from metalearn.compare.model import Comparison
from metalearn.compare.page import packing, write
from metalearn.compare.page.contents import link
from metalearn.compare.page.packing import Steps, packed, room, thinned


def _unpacked(text: str) -> np.ndarray:
    """The three upper bytes of little-endian float32, by hand."""
    three = np.frombuffer(base64.b64decode(text), "u1").reshape(-1, 3)
    return np.pad(three, ((0, 0), (1, 0))).reshape(-1).view("<f4")


def _data(path: Path) -> dict:
    text = path.read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_packed_values_come_back():
    drawn = np.random.default_rng(0).normal(size=500) * 10.0 ** np.arange(-20, 30).repeat(10)
    values = np.concatenate([drawn, [0.0, -0.0, 1.0, 0.1, np.nan, np.inf, -np.inf]])

    back = _unpacked(packed(values))

    np.testing.assert_allclose(back, values, rtol=2**-16)
    assert len(packed(values)) <= 4 * len(values) + 4
    assert np.isinf(_unpacked(packed(np.array([1e300])))[0])


def test_equal_steps_are_written_once():
    steps = Steps()

    places = [steps.place(np.array(axis)) for axis in ([0, 10, 30], [0, 10], [0, 10, 30])]

    assert places == [0, 1, 0]
    assert steps.axes == [[0, 10, 20], [0, 10]]


def test_thinning_keeps_both_ends_and_the_room(monkeypatch):
    kept = thinned(1000, 7)
    assert (kept[0], kept[-1], len(kept)) == (0, 999, 7)
    assert thinned(5, 7).tolist() == [0, 1, 2, 3, 4]
    assert room([(np.arange(800), 3)] * 4) >= 800
    monkeypatch.setattr(packing, "CHARACTERS", 10_000)
    alike, apart = ([(np.arange(500) + shift * own, 1) for shift in range(20)] for own in (0, 1))
    most = room(apart)
    assert 8_000 < 8 * most * 20 <= 10_000  # a value and a step, each of four characters
    assert 8_000 < 4 * room(alike) * 21 <= 10_000  # one axis for all


@pytest.mark.slow
def test_a_thousand_runs_stay_below_fifteen_megabytes(make_comparison, tmp_path):
    """200 configurations of five runs, four metrics of 500 points each."""
    whole: Comparison = make_comparison(["a"], seeds=5, points=500)
    one = whole.groups[0]
    metrics = [f"valid/{number}" for number in range(4)]
    entry = one.entries[0]
    series = dict.fromkeys(metrics, entry.series["valid/loss"])
    entries = tuple(
        entry.__class__(**vars(entry) | {"series": series, "place": f"runs/{n}"}) for n in range(5)
    )
    curves = dict.fromkeys(metrics, one.curves["valid/loss"])
    group = one.__class__(**vars(one) | {"entries": entries, "curves": curves})
    groups = tuple(group.__class__(**vars(group) | {"label": f"configuration {n}"}) for n in range(200))

    path = write(
        Comparison(**vars(whole) | {"groups": groups, "curved": tuple(metrics)}), tmp_path / "c.html"
    )

    size = path.stat().st_size
    assert 8e6 < size < 15e6


def test_the_file_says_what_the_comparison_has(make_comparison, tmp_path):
    path = write(make_comparison(["0.1", "0.01"]), tmp_path / "out" / "compare.html")

    assert [file.name for file in path.parent.iterdir()] == ["compare.html"]
    data = _data(path)
    first = data["groups"][0]
    assert first["final"][2][:2] == [2.1, "2.10 ± 0.10"]
    assert first["final"][2][2] == "1.852 to 2.348"
    assert first["states"] == {"finished": 3}
    assert data["goals"] == {"valid/loss": "min", "valid/accuracy": "max", "test/error": "min"}
    assert ["task.name", "digits"] in data["shared"]
    assert all(key != "seed" for key, _ in data["shared"])
    runs, axis, *curves = first["curves"]["valid/loss"]
    assert runs == 3
    assert np.cumsum(data["steps"][axis]).tolist() == list(range(0, 200, 10))
    mean, low, high = map(_unpacked, curves)
    assert (low < mean).all()
    assert (mean < high).all()
    assert data["pairs"][0]["verdict"] == "better"


def test_values_that_are_no_numbers_are_json(make_comparison, tmp_path):
    whole = make_comparison(["a"], seeds=2)
    entry = whole.groups[0].entries[0]
    odd = entry.__class__(**vars(entry) | {"final": {"valid/loss": float("nan"), "test/error": float("inf")}})
    group = whole.groups[0].__class__(**vars(whole.groups[0]) | {"entries": (odd,)})

    data = _data(write(Comparison(**vars(whole) | {"groups": (group,), "pairs": ()}), tmp_path / "c.html"))

    assert data["groups"][0]["runs"][0]["final"] == ["NaN", None, "Infinity"]


def test_nothing_in_a_label_ends_the_data(make_comparison, evil, tmp_path):
    text = write(make_comparison([evil, "b"], title=evil), tmp_path / "c.html").read_text("utf-8")

    assert text.count("</script") == 2  # of the data and of the page's own script
    assert "<b id" not in text
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", text)
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("https://wandb.ai/me/project/runs/a1", "https://wandb.ai/me/project/runs/a1"),
        ("javascript:alert(1)", ""),
        ("nowhere", ""),
    ],
)
def test_links_lead_to_what_there_is(make_comparison, tmp_path, monkeypatch, place, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a b#1").mkdir(parents=True)
    entry = make_comparison(["a"]).groups[0].entries[0]
    assert link(entry.__class__(**vars(entry) | {"place": place}), tmp_path / "out") == expected
    here = entry.__class__(**vars(entry) | {"place": "runs/a b#1"})
    assert link(here, tmp_path / "out") == "./../runs/a%20b%231/"


def test_a_picture_that_cannot_be_read_costs_itself_alone(make_comparison, picture, tmp_path):
    broken = picture._replace(svg="<svg", title="broken")
    text = write(make_comparison(["a"], pictures=(broken, picture)), tmp_path / "c.html").read_text("utf-8")

    assert "picture-0: is no readable SVG" in text
    assert text.count("<svg") == 1
    assert "onclick" not in text
