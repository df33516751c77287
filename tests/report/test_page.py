"""The pages that a user opens: what they say, and that they need nothing but themselves."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

from metalearn import compare, records, report
from metalearn.registry import UserError
from metalearn.report.drawings import of_plan
from metalearn.report.figures import SERIES, VARIABLES, band, chart
from metalearn.report.inline import inline
from metalearn.report.plan import evaluate

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Elements, ids and references of a page; notes tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.references = list[str](), list[str](), list[str]()
        self.tags, self.crossed = Counter[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.ids += [value for key, value in attrs if key == "id"]
        self.references += [value for key, value in attrs if key in ("href", "src", "xlink:href", "srcset")]
        self.references += [
            f"#{name}" for _, value in attrs for name in re.findall(r"url\(#([^)]+)\)", value or "")
        ]

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.crossed.append(tag)


def test_both_forms_say_the_same(page):
    html, markdown, _ = page
    for text in (html, markdown):
        assert "found cell beats random cell by 1.00 ± 0.99 percentage points (paired, 3 seeds)" in text
        assert "2.23 ± 0.25" in text
        assert "3.23 ± 0.32" in text
        assert "95 % t-interval" in text
        assert "0123456789abcdef0123456789abcdef01234567" in text
        assert "metalearn replicate quickstart/toy --seeds 0,1,2" in text
        assert "held against a published figure" in text
        assert "did not finish" not in text
    row = next(line for line in markdown.splitlines() if "| found cell |" in line)
    assert row == "| DARTS | digits | found cell | test/error, % | 2.23 ± 0.25 | 3 | 0, 1, 2 | 1,234 | 20 s |"


def test_the_terminal_shows_table_and_claim(replication, make_plan, tmp_path, capsys):
    stages = replication(retrain=[2.0, 2.5, 2.2], random=[3.0, 3.1, 3.6])

    report.combine("quickstart/toy", [(make_plan(), stages)], tmp_path / "out", 251.0)

    said = capsys.readouterr().out
    assert re.search(
        r"DARTS +digits +found cell +test/error, % +2\.23 ± 0\.25 +3 +0, 1, 2 +1,234 +20 s", said
    )
    assert "found cell beats random cell by 1.00 ± 0.99 percentage points (paired, 3 seeds)" in said
    assert str(tmp_path / "out" / "report.html") in said


def test_claims_hold_the_contenders_that_they_name_against_each_other(replication, make_plan):
    plan = make_plan()
    plan.table.claims = {
        "in equal steps": ["found cell", "random cell"],
        "turned": ["random cell", "found cell"],
    }
    folders = replication(retrain=[2.0, 2.5, 2.2], random=[3.0, 3.1, 3.6])

    first, second = report.plan(plan, folders).claims

    assert (first.verdict, second.verdict) == ("better", "worse")
    assert first.statement.endswith("percentage points in equal steps (paired, 3 seeds)")
    plan.table.claims = {"equal": ["found cell", "random sell"]}
    with pytest.raises(
        UserError, match=r"claims\.equal: no row is called 'random sell'; choose one of: random cell"
    ):
        report.plan(plan, folders)


def test_page_needs_nothing_but_itself(page):
    html, _, _ = page
    parsed = Page(html)

    outside = [r for r in parsed.references if re.match(r"\w+:|//", r) and r != "data:,"]
    assert outside == []
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert parsed.tags["script"] == 0
    assert not re.search(r"\son\w+=", html)
    assert "example.org" not in html


def test_ids_are_unique_and_references_lead_somewhere(page):
    parsed = Page(page[0])

    assert parsed.tags["svg"] == 5
    assert [name for name, count in Counter(parsed.ids).items() if count > 1] == []
    inside = {reference[1:] for reference in parsed.references if reference.startswith("#")}
    assert len(inside) > 20
    assert inside <= set(parsed.ids)
    assert (parsed.open, parsed.crossed) == ([], [])


def test_links_and_pictures_of_the_markdown_exist(page):
    html, markdown, folder = page

    links = re.findall(r"\]\(([^)]+)\)", markdown)
    assert len([link for link in links if link.endswith(".svg")]) == 5
    links += [link for link in Page(html).references if not link.startswith(("#", "data:"))]
    assert len(links) > 10
    assert [link for link in links if not (folder / link).exists()] == []


def test_what_cannot_be_drawn_says_why(page):
    for text in page[:2]:
        assert "not drawn: " in text
    assert "has no metric 'valid/entropy'; it has: " in page[1]


def test_bad_runs_are_shown_and_count_nowhere(make_run, replication, make_plan, tmp_path):
    folders = replication(retrain=[2.0, 2.5, 2.2], random=[3.0, 3.1, 3.6])
    shutil.rmtree(folders["random"][2])
    folders["random"][3] = make_run("killed", seed=3, state="running", test=99.0)
    folders["retrain"][3] = make_run("nan", seed=3, state="diverged", message="step 7: train/loss is nan")
    folders["retrain"][4] = make_run("odd", seed=4)
    (folders["retrain"][4] / "run.yaml").unlink()

    plan = make_plan()
    table = report.plan(plan, folders)
    report.combine("toy", [(plan, folders)], tmp_path, 1.0)

    assert [row.values for row in table.rows] == [{0: 2.0, 1: 2.5, 2: 2.2}, {0: 3.0, 1: 3.1}]
    assert table.claims[0].verdict == "none"
    states = [(entry.stage, entry.seed, entry.state) for entry in table.unfinished]
    assert states == [
        ("retrain", 3, "diverged"), ("retrain", 4, "unreadable"),
        ("random", 2, "missing"), ("random", 3, "crashed"),
    ]  # fmt: skip
    for suffix in ("md", "html"):
        text = (tmp_path / f"report.{suffix}").read_text()
        assert "4 of 9 runs did not finish (1 diverged, 1 unreadable, 1 missing, 1 crashed)" in text
        assert "step 7: train/loss is nan" in text


def test_a_figure_shows_the_stages_that_it_has(replication, make_plan, tmp_path):
    folders = replication(retrain=[2.0, 2.5]) | {"random": {0: tmp_path / "absent"}}
    stages = {"found": "retrain", "drawn": "random"}
    figures = [{"title": "t", "curve": "valid/error", "stages": stages}]

    report.combine("toy", [(make_plan(figures=figures), folders)], tmp_path, 1.0)

    text = (tmp_path / "report.md").read_text()
    assert (
        "Mean of 2 seeds; the band is one standard deviation to either side. Lacking: drawn, no run" in text
    )


def test_nothing_has_run_yet(make_plan, tmp_path):
    figures = [{"title": "t", "curve": "valid/error", "stage": "retrain"}]
    folders = {
        stage: {seed: tmp_path / stage / str(seed) for seed in range(3)} for stage in ("retrain", "random")
    }

    report.combine("toy", [(make_plan(figures=figures), folders)], tmp_path, 1.0)

    assert "6 of 6 runs did not finish (6 missing)" in (tmp_path / "report.html").read_text()


def test_a_copy_that_is_not_comparable_is_stamped_wherever_a_test_figure_stands(
    replication, make_plan, tmp_path, capsys
):
    stamp = "not comparable with papers"
    paper = {"source": "a paper", "metric": "test/error", "value": 2.2, "spread": 0.1, "unit": "%"}
    folders = replication(
        {"comparable": False, "paper": paper}, retrain=[2.0, 2.5, 2.2], random=[3.0, 3.1, 3.6]
    )
    report.combine("toy", [(make_plan(), folders)], tmp_path, 1.0)
    report.run(folders["retrain"][0])
    compare.compare(compare.Sources([*folders["retrain"].values()]), output=tmp_path)

    said = capsys.readouterr()
    assert said.out.count(stamp) >= 4
    assert f"test/error: {stamp}" in said.err
    for path in (tmp_path / "report", folders["retrain"][0] / "report", tmp_path / "compare"):
        for suffix in (".md", ".html"):
            text = path.with_suffix(suffix).read_text()
            assert stamp in text
            assert "| agrees" not in text
    markdown = (tmp_path / "report.md").read_text()
    for row in ("| found cell |", "| random cell |", "| DARTS, retrain |", "**DARTS on digits"):
        assert stamp in next(line for line in markdown.splitlines() if row in line)


def test_papers_value_beside_ours(replication, make_plan, tmp_path):
    paper = {"source": "a paper, table 1", "metric": "test/error", "value": 2.2, "spread": 0.1, "unit": "%"}
    folders = replication({"paper": paper}, retrain=[2.0, 2.5, 2.2], random=[3.0, 3.1, 3.2])
    report.combine("toy", [(make_plan(), folders)], tmp_path, 1.0)
    markdown = (tmp_path / "report.md").read_text()

    assert "| test/error | 2.23 ± 0.25 % | 2.2 ± 0.1 % | a paper, table 1 | agrees (3 seeds) |" in markdown
    assert (
        "| test/error | 3.10 ± 0.10 % | 2.2 ± 0.1 % | a paper, table 1 | worse by 0.9 (3 seeds) |" in markdown
    )

    report.run(folders["retrain"][0])
    own = (folders["retrain"][0] / "report.md").read_text()
    assert "2.2 ± 0.1 % | a paper, table 1 | no verdict: 1 seed, two are needed |" in own


def test_a_row_may_show_a_metric_of_its_own(replication, make_plan, tmp_path):
    """Several rows of one stage, each beside the value that the paper has of its metric."""
    paper = {"source": "a paper", "metric": "test/error", "value": 2.2, "spread": 0.1, "unit": "%"}
    paper |= {"others": {"valid/error": 20.5}}
    folders = replication({"paper": paper}, retrain=[2.0, 2.5, 2.2], random=[3.0, 3.1, 3.2])
    plan = make_plan()
    plan.table.rows = {"test": "retrain", "validation": "retrain valid/error", "random": "random"}
    plan.table.claims = {"": ["validation", "random"]}
    table = report.plan(plan, folders)
    report.combine("toy", [(plan, folders)], tmp_path, 1.0)

    first, second, _ = table.rows
    assert second.metric == "valid/error"
    assert second.values == {
        seed: records.read(path).last("valid/error") for seed, path in folders["retrain"].items()
    }
    assert (first.paper["value"], second.paper["value"], second.paper["spread"]) == (2.2, 20.5, None)
    assert (first.parameters, second.parameters) == ((1234,) * 3, ())
    assert "random" in table.claims[0].statement
    markdown = (tmp_path / "report.md").read_text()
    assert re.search(r"\| valid/error \| [^|]* \| 20.5 % \| a paper \| better by", markdown)
    plan.table.rows["odd"] = "nowhere valid/error"
    with pytest.raises(UserError, match="no stage is called 'nowhere'"):
        report.plan(plan, folders)


def test_one_runs_page(make_run, picture, write_curves, capsys):
    path = make_run("a", state="running", message="", steps=60, test=None)
    (path / "artifacts" / "cell.svg").write_text(picture)
    write_curves(path, {"Adam": [3.0, 2.0], "SGD": [4.0, 3.0]})

    report.run(path)

    html, markdown = (path / "report.html").read_text(), (path / "report.md").read_text()
    assert "This run is crashed" in markdown
    assert "crashed at step 60 after 12 s, seed 0, 1,234 parameters." in markdown
    assert "| method.learning_rate | 0.1 |" in markdown
    assert f"metalearn train --config-dir {path} --config-name run" in markdown
    assert Page(html).tags["svg"] == 4  # loss, error, cell, trajectories
    assert "loss of a wave" in html  # the label that the file itself gives
    assert "crashed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"figures": [{"title": "t", "curve": "a", "stage": "retrian"}]},
         "'retrian'; choose one of: retrain"),
        ({"figures": [{"title": "t", "curve": "a", "picture": "b"}]}, "must have a title and one of"),
        ({"figures": [{"title": "t", "curv": "a"}]}, "no such option; choose one of: curve"),
        ({"figures": [{"title": "t", "picture": "b", "stage": "retrain", "selected": "random"}]},
         "selected: got 'random', must be a selection; choose one of: none"),
        ({"stages": {"retrain": None}}, "no stage is called 'random'"),
    ],
)  # fmt: skip
def test_a_wrong_plan_is_refused(make_plan, changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        report.check(make_plan(**changes))


def test_the_picture_is_of_the_run_that_was_selected(replication, make_plan, tmp_path):
    folders = replication(retrain=[2.0, 2.5], random=[3.0, 3.1])
    for seed, path in folders["retrain"].items():
        (path / "artifacts/cell.svg").write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg"><g id="of{seed}"/></svg>'
        )
    (tmp_path / "chosen").mkdir()
    made = {"chosen": {"seed": 1}, "candidates": [], "metric": "valid/error", "finished": 2}
    (tmp_path / "chosen/selection.json").write_text(json.dumps(made))
    figure = {"title": "t", "picture": "cell.svg", "stage": "retrain"}
    plan = make_plan(
        figures=[figure, figure | {"selected": "chosen"}],
        stages={"retrain": None, "random": None, "chosen": None},
        selections=["chosen"],
    )

    first, selected = of_plan(evaluate(plan, {**folders, "chosen": {0: tmp_path / "chosen"}}))

    assert (first.caption, "of0" in first.svg) == ("Seed 0.", True)
    assert (selected.caption, "of1" in selected.svg) == ("Seed 1, which was selected.", True)


def test_a_metric_that_no_run_has(replication, make_plan, tmp_path):
    folders = replication(retrain=[2.0, 2.5], random=[3.0, 3.1])
    plan = make_plan()
    plan.table.metric = "test/eror"

    report.combine("toy", [(plan, folders)], tmp_path, 1.0)

    text = (tmp_path / "report.md").read_text()
    assert "found cell, seed 0: has no metric 'test/eror'; it has: test/error" in text


def test_bands_by_hand():
    curves = [([0, 1, 2], [1.0, 2.0, 4.0]), ([0, 2, 3], [3.0, 16.0, 9.0])]

    plain = band("a", curves, False, 0)
    assert plain.x.tolist() == [0, 2]  # the steps that both have
    assert plain.middle.tolist() == [2.0, 10.0]
    assert (plain.high - plain.middle).tolist() == pytest.approx([2**0.5, 72**0.5])

    geometric = band("a", curves, True, 0)
    assert geometric.middle.tolist() == pytest.approx([3**0.5, 8.0])
    assert (geometric.high * geometric.low).tolist() == pytest.approx([3.0, 64.0])


def test_charts_are_the_same_bytes_and_follow_the_page():
    lines = [band(name, [([0, 1], [1.0, 2.0])], False, place) for place, name in enumerate("ab")]

    first, second = chart(lines, "step", "loss", False), chart(lines, "step", "loss", False)

    assert first == second
    inside = inline(first, "f", "a chart", VARIABLES)
    assert "var(--series-2, " in inside
    assert not re.search(r"(?<!, )#2463a9", inside)


def test_no_svg_no_picture():
    with pytest.raises(UserError, match="no readable SVG"):
        inline("<svg", "f", "a picture")


@pytest.mark.parametrize("look", ["light", "dark"])
def test_headless_chromium_shows_the_page(page, look, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium or google-chrome on PATH: the page is not opened")
    picture = tmp_path / f"{look}.png"
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--window-size=1200,2400",
    ]
    flags += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if look == "dark" else []
    done = subprocess.run(
        [browser, *flags, f"--screenshot={picture}", f"--user-data-dir={tmp_path / 'profile'}",
         (page[2] / "report.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip

    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    _check_shown(picture, look)


def _check_shown(picture: Path, look: str) -> None:
    """The corner is the page's background, and ink covers a good part of every quarter of the upper page."""
    import numpy as np
    from PIL import Image

    pixels = np.asarray(Image.open(picture).convert("L"), dtype=float)
    background = pixels[5, 5]
    assert (background > 240) == (look == "light")
    assert (background < 40) == (look == "dark")
    for part in np.array_split(pixels[:2000], 4):
        assert np.mean(np.abs(part - background) > 60) > 0.003


def test_a_contender_keeps_its_colour_under_another_name(replication, make_plan, tmp_path):
    stages = {"found": "retrain", "random": "random"}
    figures = [
        {"title": "first", "curve": "train/loss", "stage": "retrain"},
        {"title": "second", "curve": "valid/error", "stages": stages},
    ]
    folders = replication(retrain=[2.0], random=[3.0])

    report.combine("toy", [(make_plan(figures=figures), folders)], tmp_path, 1.0)

    first, second = (path.read_text() for path in sorted((tmp_path / "report_figures").glob("*.svg")))
    assert [colour in first for colour in SERIES[:3]] == [True, False, False]
    assert [colour in second for colour in SERIES[:3]] == [True, True, False]
