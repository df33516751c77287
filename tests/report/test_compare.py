"""Runs side by side: the command's table, lines and files."""

import csv
import re

import pytest

from metalearn.compare import Sources, compare
from metalearn.registry import UserError


@pytest.fixture
def two_rates(make_run):
    """Three runs of one configuration, two of another."""
    return [
        *(make_run(f"a{seed}", seed=seed, test=value) for seed, value in enumerate([2.0, 2.5, 2.2])),
        *(make_run(f"b{seed}", seed=seed, test=value, rate=0.2) for seed, value in enumerate([3.0, 3.1])),
    ]


def test_the_table_fits_a_terminal(two_rates, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    compare(Sources(two_rates))

    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert all(len(line) <= 100 for line in said.splitlines())
    heads = r"configuration +runs +valid/error +\(best\) +test/error +parameters +time"
    assert re.search(heads, said)
    assert re.search(r"learning_rate=0.1 +3 .* 2\.23 ± 0\.25 +1,234 +20 s", said)
    assert re.search(r"1\.608 to 2\.858", said)  # the 95 % interval of 2.0, 2.5, 2.2
    assert "pairs without a claim: a test takes 3 finished runs of both" in said


def test_another_program_reads_lines_with_tabs(two_rates, capsys):
    compare(Sources(two_rates), ["test/error"])

    said = capsys.readouterr()
    header, first, second = (line.split("\t") for line in said.out.splitlines())
    row, other = dict(zip(header, first, strict=True)), dict(zip(header, second, strict=True))
    assert (row["method.learning_rate"], other["method.learning_rate"]) == ("0.1", "0.2")
    assert (row["runs"], row["finished"], row["test/error runs"]) == ("3", "3", "3")
    assert float(row["test/error"]) == pytest.approx(2.2333333333)
    assert float(row["test/error deviation"]) == pytest.approx(0.2516611478)
    assert "without a claim: a test takes 3 finished runs of both" in said.err


def test_files(two_rates, tmp_path):
    compare(Sources(two_rates), output=tmp_path / "out")

    text = (tmp_path / "out" / "compare.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| learning_rate=0.1"))
    assert "| 0.1 | 3 | 0, 1, 2 |" in row
    assert "2.23 ± 0.25; 1.608 to 2.858" in row
    assert text.count("compare_figures/") == 3  # valid/error, valid/loss, train/loss: both configurations
    for picture in (tmp_path / "out" / "compare_figures").iterdir():
        assert ">learning_rate=0.2</text>" in picture.read_text()
    assert "learning_rate=0.2" in (tmp_path / "out" / "compare.html").read_text()


def test_the_csv_has_a_line_a_run_in_full_precision(make_run, tmp_path):
    paths = [
        make_run("a", seed=0, test=2.0000001),
        make_run("b", seed=1, rate=0.2, state="failed", test=None),
    ]

    compare(Sources(paths), output=tmp_path)

    with (tmp_path / "compare.csv").open() as file:
        first, second = csv.DictReader(file)
    assert (first["test/error"], second["test/error"]) == ("2.0000001", "")
    assert (first["method.learning_rate"], second["method.learning_rate"]) == ("0.1", "0.2")
    assert float(first["valid/error best"]) < float(first["valid/error"])
    assert (second["state"], second["seed"]) == ("failed", "1")


def test_runs_that_did_not_finish_are_said(make_run, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    compare(Sources([make_run("a"), make_run("b", seed=1, state="running", test=None)]))

    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert re.search(r"b\s+is\s+crashed\s+at\s+step\s+100", said)
    assert "2 (1 crashed)" in said
    assert "2.5 (1 of 2)" in said


def test_different_methods_are_named_by_their_names(make_run):
    groups = compare(Sources([make_run("a"), make_run("b", task="two_moons")])).groups

    assert [group.label for group in groups] == ["task=digits", "task=two_moons"]


def test_mistakes(make_run):
    empty = make_run("b")
    (empty / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="none of these 1 runs has a row"):
        compare(Sources([empty]))
    with pytest.raises(UserError, match=r"--output: .*cannot write"):
        compare(Sources([make_run("a")]), output=empty / "run.yaml" / "out")


def test_the_command(make_run, metalearn, tmp_path):
    make_run("a")
    code, out, err = metalearn(
        "compare", "--group", "toy", "--runs", str(tmp_path / "runs"), "--metric", "train/loss"
    )
    assert (code, out.split("\n")[0].count("train/loss")) == (0, 10)  # final and best, five columns each
    code, _, err = metalearn("compare", "--group", "toi", "--runs", str(tmp_path / "runs"))
    assert code == 2
    assert "the groups there: toy" in err
