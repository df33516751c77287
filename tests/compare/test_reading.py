"""Rows and configurations read fast are those that json and OmegaConf read; thinning keeps what one sees."""

import json
import random

import numpy
import pytest
from omegaconf import OmegaConf

from metalearn.compare import configuration, metrics
from metalearn.compare.model import Series
from metalearn.compare.thinning import BUCKETS, SHARED, thinned

ROW = b'{"step": 10, "train/loss": 0.5}\n'
AWKWARD = {  # name: bytes of metrics.jsonl, and whether arrow reads them
    "whole numbers beside fractions": (b'{"step": 1, "a": 3}\n{"step": 2, "a": 2.5}\n', True),
    "exponents": (b'{"step": 1, "a": 1e-07, "b": 1.7976931348623157e+308}\n{"step": 2, "a": 5e-324}\n', True),
    "negative zero": (b'{"step": 1, "a": -0.0}\n', True),
    "not finite": (ROW + b'{"step": 20, "train/loss": NaN, "b": -Infinity, "c": Infinity}\n', False),
    "not finite in other words": (ROW + b'{"step": 20, "train/loss": Inf}\n' + ROW, False),
    "beyond int64": (b'{"step": 1, "a": 18446744073709551617, "b": 9007199254740993}\n', None),
    "beyond float64": (b'{"step": 1, "a": 1e400, "b": -1e400}\n', False),
    "beyond float64, a whole number": (b'{"step": 1, "a": 1' + b"0" * 400 + b"}\n", None),
    "words beside numbers": (b'{"step": 1, "a": 1.0, "note": "2020-01-01"}\n', False),
    "words for numbers": (b'{"step": 1, "a": 1.0}\n{"step": 2, "a": "x"}\n', False),
    "truths": (b'{"step": 1, "a": true}\n{"step": 2, "a": false, "b": 1.5}\n', False),
    "nothing": (b"", False),
    "null": (b'{"step": 1, "a": null, "b": 1}\n{"step": 2, "a": 2.0}\n', True),
    "only null": (b'{"step": 1, "a": null}\n', False),
    "columns that come late": (ROW * 3 + b'{"step": 20, "valid/loss": 0.25}\n', True),
    "torn": (ROW + b'{"step": 20, "train/lo', True),
    "whole but for its end": (ROW + b'{"step": 20, "train/loss": 0.25}', True),
    "torn in the middle": (ROW + b'{"step": 20, "tr' + ROW + ROW, False),
    "zeros after a power cut": (ROW + b"\0" * 64 + b"\n" + ROW, False),
    "no text": (ROW + b"\xff\xfe\n" + ROW, False),
    "an empty line": (ROW + b"\n" + ROW, False),
    "two on a line and an empty one": (ROW[:-1] + ROW + b"\n" + ROW, False),
    "two on a line": (ROW[:-1] + b" " + ROW, False),
    "a list": (ROW + b"[1, 2]\n" + ROW, False),
    "without a step": (ROW + b'{"train/loss": 0.1}\n' + ROW, False),
    "a step that is no whole number": (b'{"step": 1.0, "a": 2.0}\n', False),
    "nested": (b'{"step": 1, "a": {"b": 1.0}, "c": 2.0}\n', False),
    "the same name twice": (b'{"step": 1, "a": 1.0, "a": 2.0}\n', None),
    "escaped names": (b'{"step": 1, "a\\u0020b": 1.0, "c/\xc3\xa9": 2.0}\n', True),
    "Windows": (ROW.replace(b"\n", b"\r\n") * 2, None),
}


@pytest.mark.parametrize("before", [b"", ROW, b'{"step": 1, "a": 1.0, "b": 2.0}\n'], ids=["", "loss", "a, b"])
@pytest.mark.parametrize(("data", "fast"), AWKWARD.values(), ids=AWKWARD)
def test_fast_rows_are_those_of_json(tmp_path, data, fast, before):
    path, reader = tmp_path / "metrics.jsonl", metrics.Reader()
    path.write_bytes(before)
    reader.read(path)
    path.write_bytes(data)

    found, expected = reader.read(path), metrics.by_json(data)

    assert list(found) == list(expected) or set(found) == set(expected)
    for name, series in expected.items():
        assert found[name].steps.tobytes() == series.steps.astype(numpy.int64).tobytes()
        assert found[name].values.tobytes() == series.values.tobytes()
    if fast is not None:
        assert (metrics.by_arrow(data[: data.rfind(b"\n") + 1]) is not None) == fast


def test_every_float_is_read_to_its_last_bit(tmp_path):
    noise = random.Random(0)
    values = [noise.uniform(-1, 1) * 10.0 ** noise.randint(-320, 308) for _ in range(3000)]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "a": value}) + "\n" for n, value in enumerate(values)))

    assert metrics.by_arrow(path.read_bytes()) is not None
    assert metrics.Reader().read(path)["a"].values.tolist() == values
    assert metrics.Reader().read(tmp_path / "absent") == {}


CONFIG = """\
# a comment
defaults:
  - _self_
seed: 3
name: darts/cifar10
task:
  name: digits
  rates: [1e-3, 1.0e-08, .5, 1_000, 0x10, 010]
  words: ['1e-3', "no", 2020-01-01, ~, 'a: b', "${seed}"]
method: {name: supervised, learning_rate: 3e-4, text: "two
  lines"}
paper:
log:
  tags: []
  block: |
    seed: 5

    task: none
"""


def test_configurations_are_those_of_omegaconf(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    loaded = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(loaded, dict)

    assert configuration.parse(CONFIG) == loaded
    assert configuration.read(path) == {key: value for key, value in loaded.items() if key != "defaults"}
    assert configuration.parse("a: &x [1]\nb: *x\n") == {"a": [1], "b": [1]}  # blocks that need each other


@pytest.mark.parametrize(("first", "every"), [(1, 1), (10, 10), (7, 20), (3, 2)])
def test_thinning_keeps_extremes_ends_and_common_steps(first, every):
    rng = numpy.random.default_rng(0)
    long, short = (
        Series(first + every * numpy.arange(count), rng.normal(size=count)) for count in (10_000, 6_400)
    )
    long.values[[1234, 4321]] = [50.0, -50.0]

    kept, other = thinned(long), thinned(short)

    assert len(kept.steps) <= SHARED + 2 * BUCKETS + 2
    assert {50.0, -50.0, long.values[0], long.values[-1]} <= set(kept.values.tolist())
    assert (numpy.diff(kept.steps) > 0).all()
    at = numpy.searchsorted(long.steps, kept.steps)
    assert (long.values[at] == kept.values).all()
    common = numpy.intersect1d(kept.steps, other.steps)
    assert len(common) >= SHARED // 4
    assert numpy.diff(common).max() <= 400 * every  # all along the shorter run


def test_every_bucket_shows_its_extremes():
    values = numpy.random.default_rng(1).normal(size=BUCKETS * 100)
    kept = set(thinned(Series(numpy.arange(len(values)), values)).values.tolist())

    for part in values.reshape(BUCKETS, 100):
        assert {part.min(), part.max()} <= kept


def test_a_short_curve_stays_and_nan_hides_no_extreme():
    short = Series(numpy.arange(500), numpy.ones(500))
    assert thinned(short) is short

    values = numpy.full(5000, numpy.nan)
    values[777] = 1.0
    assert 1.0 in thinned(Series(numpy.arange(5000), values)).values
