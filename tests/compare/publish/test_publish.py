"""Publishing against a local fake of W&B's HTTP API: W&B's own library, its own requests, our answers."""

import json
import socket
import sys

import pytest

from metalearn.compare import Sources, build, gather, wandb_report
from metalearn.compare.upload import parcel, replay
from metalearn.compare.wandb_report import markdown
from metalearn.report.page import Grid


@pytest.mark.slow
def test_runs_and_their_report_arrive_once(fake, publish, make_run):
    runs = [make_run(f"r{rate}_s{seed}", seed, rate) for rate in (0.1, 0.2) for seed in (0, 1, 2)]
    parts = (runs[0].parent, "--report", "Rates <b>")

    done = publish(fake.address, *parts)

    assert done.code == 0, done.said
    assert f"runs: {fake.address}/me/metalearn" in done.said
    assert f"report: {fake.address}/me/metalearn/reports/Rates-<b>--" in done.said
    assert len(fake.rows) == 6
    rows = fake.rows["idr0.1s0"]
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[-1]["test/error"] == pytest.approx(2.1)  # rows of the same step are one
    made = [variables for name, variables in fake.asked if name == "UpsertBucket"]
    about = {tuple(one[key] for key in ("groupName", "jobType", "project", "entity")) for one in made}
    assert ("toy/rates", "train", "metalearn", "me") in about
    (view,) = [variables for name, variables in fake.asked if name == "upsertView"]
    assert view["displayName"] == "Rates <b>"
    for words in ("Paired tests", "| 3.0 ± 1.0; 0.5159 to 5.484 |", "toy/rates", "r0.1_s0", "| better |"):
        assert words in view["spec"], words
    assert '"viewType":"Run History Line Plot"' in view["spec"]

    before = len(fake.asked), {name: len(rows) for name, rows in fake.rows.items()}
    again = publish(fake.address, runs[0].parent)
    assert again.code == 0, again.said
    assert "0 of 6 runs" in again.said
    assert "6 that was sent before" in again.said
    assert {name: len(rows) for name, rows in fake.rows.items()} == before[1]
    assert "nothing to send" in again.said
    assert len(fake.asked) == before[0]


@pytest.mark.slow
def test_without_key_network_or_project_nothing_is_sent(fake, publish, make_run):
    run = make_run("a_seed0")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
    for server, arguments, key, words in (
        (fake.address, [], None, "WANDB_API_KEY or run `wandb login`"),
        (nowhere, [], fake.key, "out of reach"),
        (
            fake.address,
            ["--project", "metalern"],
            fake.key,
            "no project 'metalern'; it has: metalearn",
        ),
        (
            fake.address,
            ["--entity", "teem"],
            fake.key,
            "no entity 'teem'; --entity is one of: team",
        ),
    ):
        done = publish(server, run, *arguments, key=key)
        assert done.code == 2, done.said
        assert words in done.said
        assert "nothing was sent" in done.said
        assert "Traceback" not in done.said
    assert fake.rows == {}
    assert not (run / "wandb").exists()


def test_dry_run_says_what_would_be_sent_and_how_it_is_tested(metalearn, make_run):
    run = make_run("a_seed0")
    (make_run("b_seed0", state="running") / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    done = make_run("c_seed0") / "wandb" / "offline-run-1-x"
    done.mkdir(parents=True)
    (done / "run-x.wandb").touch()
    sent = make_run("d_seed0") / "wandb" / "offline-run-1-y"
    sent.mkdir(parents=True)
    (sent / "run-y.wandb").touch()
    (sent / "run-y.wandb.synced").touch()

    code, out, err = metalearn("publish", str(run.parent), "--dry-run")

    said = out + err
    assert code == 0
    assert "to metalearn: 2 of 4 runs" in said
    assert "a_seed0: no W&B log: metrics.jsonl" in said
    assert "c_seed0: its offline W&B log" in said
    assert "one that is running" in said
    assert "one that was sent before" in said
    assert "tested against a local fake of W&B's HTTP API, not against wandb.ai" in said
    assert not (run / "wandb").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["runs"], "these runs name several: metalearn, other; --project chooses one"),
        (["nowhere"], "nowhere is no run directory and holds none"),
    ],
)
def test_mistakes_are_one_message(metalearn, make_run, arguments, words):
    make_run("a_seed0")
    make_run("b_seed0", project="other")

    code, out, err = metalearn("publish", *arguments, "--dry-run")

    assert code == 2
    assert words in out + err
    assert "Traceback" not in err


def test_a_missing_extra_is_told_before_anything_is_sent(metalearn, make_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    code, out, err = metalearn("publish", str(make_run("a_seed0")), "--report", "title")

    assert code == 2
    assert "uv sync --extra reports" in out + err


@pytest.mark.slow
def test_the_log_from_rows_is_what_the_comparison_reads(make_run):
    """The W&B log that replaying writes holds the same run as its directory."""
    path = make_run("a_seed1", seed=1)

    (log,) = replay(parcel(path).run)

    assert parcel(path).logs == (log,)
    assert [entry.name for entry in path.iterdir() if entry.name.startswith(".tmp")] == []
    (own,), _ = gather(Sources([path]))
    (written,), _ = gather(Sources([log]))
    assert (written.state, written.step, written.final) == (own.state, own.step, own.final)
    assert written.config["method.learning_rate"] == 0.1
    assert written.series["valid/error"].steps.tolist() == [10, 20, 30]


def test_tables_are_markdown():
    grid = Grid(["a", "b"], [["x|y", "1 ± 2\n0 to 2"], ["<b>", "-"]], "", frozenset({1}))

    assert markdown(grid).splitlines() == [
        "| a | b |",
        "| --- | ---: |",
        "| x\\|y | 1 ± 2; 0 to 2 |",
        "| &lt;b> | - |",
    ]


@pytest.mark.slow
def test_blocks_hold_table_run_sets_plots_and_tests(make_run):
    runs = [make_run(f"r{rate}_s{seed}", seed, rate) for rate in (0.1, 0.2) for seed in (0, 1, 2)]
    entries, notices = gather(Sources(runs))
    comparison = build(entries, notices=notices)

    parts = wandb_report.blocks(comparison, "me", "metalearn")

    kinds = [type(part).__name__ for part in parts]
    assert kinds == [
        "TableOfContents",
        "H2",
        "MarkdownBlock",
        "P",
        "H2",
        "PanelGrid",
        "H2",
        "MarkdownBlock",
        "P",
    ]
    grid = parts[kinds.index("PanelGrid")]
    assert [panel.y for panel in grid.panels] == [["valid/error"]]
    assert [one.name for one in grid.runsets] == [group.label for group in comparison.groups]
    assert "r0.2_s1" in str(grid.runsets[1].filters)
    assert "r0.1" not in str(grid.runsets[1].filters)
