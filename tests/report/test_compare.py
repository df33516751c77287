"""Runs side by side."""

import csv
import re

import pytest

from metalearn import compare
from metalearn.registry import UserError


def test_rows_are_configurations_and_columns_what_differs(make_run, tmp_path, capsys):
    paths = [
        *(make_run(f"a{seed}", seed=seed, test=value) for seed, value in enumerate([2.0, 2.5, 2.2])),
        *(make_run(f"b{seed}", seed=seed, test=value, rate=0.2) for seed, value in enumerate([3.0, 3.1])),
    ]

    grid = compare.runs(paths, tmp_path / "out")

    assert grid.header == [
        "method.learning_rate", "runs", "seeds", "valid/loss", "valid/error", "test/error",
        "valid/error (best)", "parameters", "time a run",
    ]  # fmt: skip
    first, second = (dict(zip(grid.header, row, strict=True)) for row in grid.rows)
    assert (first["method.learning_rate"], first["runs"], first["seeds"]) == ("0.1", "3", "0, 1, 2")
    assert (first["test/error"], second["test/error"]) == ("2.23 ± 0.25", "3.050 ± 0.071")
    assert first["valid/error (best)"] != first["valid/error"]
    assert re.search(r"0\.1 +3 +0, 1, 2", capsys.readouterr().out)

    html = (tmp_path / "out" / "compare.html").read_text()
    assert html.count("<svg") == 3  # valid/loss, valid/error, train/loss: both configurations in each
    assert html.count(">method.learning_rate=0.2</text>") == 3
    assert "2.23 ± 0.25" in (tmp_path / "out" / "compare.md").read_text()


def test_the_csv_has_a_line_a_run_in_full_precision(make_run, tmp_path):
    paths = [
        make_run("a", seed=0, test=2.0000001),
        make_run("b", seed=1, rate=0.2, state="failed", test=None),
    ]

    compare.runs(paths, tmp_path)

    with (tmp_path / "compare.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["test/error"], second["test/error"]) == ("2.0000001", "")
    assert (first["method.learning_rate"], second["method.learning_rate"]) == ("0.1", "0.2")
    assert (second["state"], second["seed"]) == ("failed", "1")


def test_runs_that_did_not_finish_are_said(make_run, capsys):
    compare.runs([make_run("a"), make_run("b", seed=1, state="running", test=None)])

    said = capsys.readouterr().out
    assert re.search(r"b is crashed at step 100", said)
    assert "2.5 of 1" not in said
    assert "2.5 (1 of 2)" in said


def test_different_methods_are_named_by_their_names(make_run):
    paths = [make_run("a"), make_run("b", task="two_moons")]

    assert [row[0] for row in compare.runs(paths).rows] == ["digits", "two_moons"]


def test_the_same_run_twice_counts_once(make_run):
    path = make_run("a")

    assert compare.runs([path, path / "." / ""]).rows[0][1] == "1"


def test_mistakes(make_run, tmp_path):
    with pytest.raises(UserError, match=r"no run\.yaml"):
        compare.runs([make_run("a"), tmp_path])
    empty = make_run("b")
    (empty / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="none of these 1 runs has a row"):
        compare.runs([empty])
