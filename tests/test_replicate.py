"""Plans: selections, tiers, seeds of stages, what is refused, and what a second command finds."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from metalearn import cli
from metalearn.config import typed
from metalearn.registry import UserError
from metalearn.replicate import command, schedule
from metalearn.replicate.check import check, check_run
from metalearn.replicate.jobs import Choice, jobs, merged
from metalearn.replicate.plan import Plan, SelectOptions, _take_tier, load
from metalearn.replicate.schedule import Outcome
from metalearn.replicate.selection import select

cli.register_all()

STAGES = {
    "search": {"recipe": "quickstart/darts_digits_search"},
    "short": {
        "recipe": "quickstart/darts_digits_retrain",
        "overrides": ["network.genotype={search}/artifacts/genotype.json", "train.test=false"],
    },
    "selected": {"select": {"stage": "short", "metric": "valid/error", "goal": "min"}},
    "retrain": {
        "recipe": "quickstart/darts_digits_retrain",
        "seeds": [5, 6],
        "overrides": ["network.genotype={selected}/genotype.json"],
    },
}
PLAN = {
    "name": "toy",
    "family": "DARTS",
    "seeds": [0, 1, 2],
    "stages": STAGES,
    "table": {"metric": "test/error", "goal": "min", "unit": "%", "rows": {"found": "retrain"}},
}


def make_plan(stages=None, **changes):
    stages = {name: {**STAGES.get(name, {}), **change} for name, change in (stages or {}).items()}
    return typed(Plan, {**PLAN, **changes, "stages": {**STAGES, **stages}}, "replicate.")


def make_run(path, seed, errors, state="finished"):
    """A run directory as the loop leaves it; its genotype names its seed."""
    (path / "artifacts").mkdir(parents=True, exist_ok=True)
    values = {"seed": seed, "task": {"name": "digits"}, "train": {"goal": "min"}}
    (path / "run.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    (path / "status.json").write_text(json.dumps({"state": state, "step": len(errors)}))
    rows = [json.dumps({"step": step, "valid/error": error}) + "\n" for step, error in enumerate(errors)]
    (path / "metrics.jsonl").write_text("".join(rows))
    (path / "artifacts" / "genotype.json").write_text(f'{{"of": {seed}}}')
    (path / "artifacts" / "genotype.svg").write_text(f"<svg id='{seed}'/>")
    return path


@pytest.fixture
def candidates(tmp_path):
    """`candidates([errors of seed 0], ...)`, None for one that failed: a choice among them."""

    def make(*curves, dependents=(), **options):
        runs = {
            seed: make_run(
                tmp_path / f"short_seed{seed}", seed, curve or [1.0], "finished" if curve else "failed"
            )
            for seed, curve in enumerate(curves)
        }
        options = {"stage": "short", "metric": "valid/error", "goal": "min"} | options
        return Choice(SelectOptions(**options), runs, tuple(dependents))

    return make


@pytest.mark.parametrize(
    ("curves", "options", "seed"),
    [
        (([5, 4], [1, 3], [5, 3.5]), {}, 1),
        (([5, 4], [1, 3], [5, 3.5]), {"goal": "max"}, 0),
        (([5, 4], [9, 3], [0.5, 5]), {"value": "best"}, 2),
        (([5, 4], [9, 3], [0.5, 5]), {"value": "best", "goal": "max"}, 1),
        (([3], [2], [2]), {}, 1),
        ((None, [9], [8]), {}, 2),
    ],
)
def test_the_best_candidate_is_chosen(candidates, curves, options, seed, tmp_path):
    words = select(candidates(*curves, **options), tmp_path / "selected")

    assert json.loads((tmp_path / "selected" / "genotype.json").read_text()) == {"of": seed}
    assert f"id='{seed}'" in (tmp_path / "selected" / "genotype.svg").read_text()
    report = json.loads((tmp_path / "selected" / "selection.json").read_text())
    assert report["chosen"]["seed"] == seed
    assert [one["seed"] for one in report["candidates"]] == [0, 1, 2]
    assert len({one["genotype"] for one in report["candidates"] if one["genotype"]}) == 3 - curves.count(None)
    assert f"seed {seed} of {'2 of 3' if None in curves else '3'} runs" in words


def test_without_a_finished_candidate_nothing_is_chosen(candidates, tmp_path):
    with pytest.raises(UserError, match=r"no run of short to choose from \(seed 0 failed, seed 1 failed\)"):
        select(candidates(None, None), tmp_path / "selected")
    with pytest.raises(UserError, match="has no metric 'valid/loss' to choose by; it has: valid/error"):
        select(candidates([1.0], metric="valid/loss"), tmp_path / "selected")
    assert not (tmp_path / "selected").exists()


def test_a_selection_stands_once_a_run_was_made_of_it(candidates, tmp_path):
    folder, later = tmp_path / "selected", tmp_path / "retrain"
    select(candidates([4], [3]), folder)
    select(candidates([2], [3], dependents=[later]), folder)
    assert json.loads((folder / "genotype.json").read_text()) == {"of": 0}  # nothing used the first one

    make_run(later, 5, [1.0])
    assert "as chosen before" in select(candidates([2], [1], dependents=[later]), folder)
    assert json.loads((folder / "genotype.json").read_text()) == {"of": 0}
    with pytest.raises(UserError, match="was chosen among seeds 0, 1, now asked among 0, 1, 2"):
        select(candidates([2], [1], [3], dependents=[later]), folder)


def test_stages_have_their_seeds_and_find_each_other(tmp_path):
    plan = make_plan()
    check(plan)
    found = {job.folder.name: job for job in jobs(plan, ["log=none"], tmp_path)}

    assert list(found) == [
        "search_seed0", "search_seed1", "search_seed2", "short_seed0", "short_seed1", "short_seed2",
        "selected", "retrain_seed5", "retrain_seed6",
    ]  # fmt: skip
    assert (
        f"network.genotype='{tmp_path}/toy/search_seed1/artifacts/genotype.json'"
        in found["short_seed1"].overrides
    )
    assert found["short_seed1"].needs == [tmp_path / "toy" / "search_seed1"]
    assert f"network.genotype='{tmp_path}/toy/selected/genotype.json'" in found["retrain_seed6"].overrides
    choice = found["selected"].choice
    assert choice is not None
    assert list(choice.candidates) == [0, 1, 2]
    assert choice.dependents == (tmp_path / "toy" / "retrain_seed5", tmp_path / "toy" / "retrain_seed6")
    assert not plan.paired("retrain")
    assert plan.paired("short")


def test_a_selection_for_each_seed(tmp_path):
    plan = make_plan({"search": {"per_seed": 2}, "short": {"per_seed": 2}, "retrain": {"seeds": None}})
    check(plan)
    found = {job.folder.name: job for job in jobs(plan, [], tmp_path)}
    choices = [job.choice for job in found.values() if job.choice]

    assert [list(choice.candidates) for choice in choices] == [[0, 1], [2, 3], [4, 5]]
    assert found["retrain_seed1"].needs == [tmp_path / "toy" / "selected_seed1"]
    assert [choice.dependents for choice in choices] == [
        (tmp_path / "toy" / f"retrain_seed{seed}",) for seed in range(3)
    ]
    assert plan.paired("retrain")


def test_plans_of_one_folder_share_their_runs(tmp_path):
    one, other = make_plan(folder="table"), make_plan(folder="table", name="other")
    together = merged([*jobs(one, [], tmp_path), *jobs(other, [], tmp_path)])
    assert [job.folder for job in together] == [job.folder for job in jobs(one, [], tmp_path)]
    other.stages["search"].overrides = ["train.steps=3"]
    with pytest.raises(UserError, match="toy and other want different runs there"):
        merged([*jobs(one, [], tmp_path), *jobs(other, [], tmp_path)])


TIERS = {
    "smoke": {
        "seeds": [0],
        "overrides": ["train.steps=2"],
        "stages": {"retrain": {"seeds": [7], "overrides": ["train.steps=3"]}},
    },
    "paper": {},
}


def test_a_tier_changes_seeds_and_overrides_in_a_folder_of_its_own(tmp_path):
    plan = make_plan(tier="paper", tiers=TIERS)
    _take_tier(plan, "smoke")
    found = {job.folder: job for job in jobs(plan, ["train.log_every=1"], tmp_path)}
    place = tmp_path / "toy" / "smoke"

    assert [path.name for path in found] == ["search_seed0", "short_seed0", "selected", "retrain_seed7"]
    assert "train.steps=2" in found[place / "short_seed0"].overrides
    last = found[place / "retrain_seed7"].overrides
    assert [line for line in last if line.startswith("train.steps")] == ["train.steps=3"]
    assert "name=toy/smoke" in last
    assert last[-1] == "train.log_every=1"


def test_the_default_tier_is_the_plans():
    plan = make_plan(tier="paper", tiers=TIERS)
    _take_tier(plan, None)
    assert (plan.tier, plan.place, plan.seeds) == ("paper", "toy/paper", [0, 1, 2])


def test_unknown_tiers_are_one_message(metalearn):
    with pytest.raises(
        UserError, match=r"tier=cup: recipe toy has no such tier; choose one of: paper, smoke"
    ):
        _take_tier(make_plan(tier="paper", tiers=TIERS), "cup")
    for name in ("quickstart/darts_digits", "quickstart/darts_digits_search", "quickstart"):
        with pytest.raises(UserError, match=r"tier=cpu: recipe quickstart/darts_digits\w* has no tiers"):
            load(name, None, "cpu")
    code, _, err = metalearn("replicate", "darts/mnist", "tier=cup")
    assert code == 2
    assert "choose one of: cpu, " in err
    code, _, err = metalearn("replicate", "darts/mnist", "tier=cpu", "tier=smoke")
    assert (code, err) == (2, "metalearn: tier: got cpu and smoke, must be one\n")


def test_a_plan_is_not_trained(metalearn):
    code, _, err = metalearn("train", "recipe=darts/mnist")
    assert code == 2
    assert (
        "use metalearn replicate NAME, or train recipe=darts/mnist_search, or train recipe=darts/mnist_r"
        in err
    )


SELECT = {"stage": "short", "metric": "valid/error", "goal": "min"}
REFUSED = [
    ({"selected": {"select": {**SELECT, "metric": "test/error"}}}, "must be a validation metric"),
    ({"selected": {"select": {**SELECT, "goal": "low"}}}, r"select\.goal: got 'low', must be one of min"),
    ({"selected": {"select": {**SELECT, "value": "first"}}}, r"select\.value: got 'first'"),
    ({"selected": {"select": {**SELECT, "stage": "retrain"}}}, "must be an earlier stage of runs"),
    ({"selected": {"recipe": "quickstart/darts_digits_search"}}, "either a recipe or a select"),
    ({"selected": {"seeds": [1]}}, "a selection has no overrides, seeds"),
    ({"short": {"seeds": [0, 3]}}, "takes seeds 0, 3, but search has no run with seed 3"),
    ({"short": {"seeds": [1, 1]}}, "one or more different numbers"),
    ({"short": {"per_seed": 0}}, "per_seed: got 0, must be at least 1"),
    ({"search": {"overrides": ["network.genotype={short}/x"]}}, "'short', which is not one of those before"),
]  # fmt: skip


@pytest.mark.parametrize(("stages", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_plan_that_contradicts_itself_is_refused(stages, message):
    with pytest.raises(UserError, match=message):
        check(make_plan(stages))


def test_a_row_is_no_selection():
    with pytest.raises(UserError, match="selected is a selection, must be a stage of runs"):
        check(make_plan(table={**PLAN["table"], "rows": {"found": "selected"}}))


def test_only_the_end_of_a_plan_tests():
    plan = make_plan()
    tests = SimpleNamespace(train=SimpleNamespace(test=True, evaluate_every=1))
    check_run(plan, "retrain", tests)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"short: reads the test split, though selected builds on it"):
        check_run(plan, "short", tests)  # type: ignore[arg-type]
    rows = {"found": "retrain", "candidate": "short"}
    plan = make_plan(table={**PLAN["table"], "rows": rows})
    with pytest.raises(UserError, match=r"short: reads the test split, though selected builds on it"):
        check_run(plan, "short", tests)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"search: reads the test split, though short builds on it"):
        check_run(plan, "search", tests)  # type: ignore[arg-type]
    silent = SimpleNamespace(train=SimpleNamespace(test=False, evaluate_every=0))
    with pytest.raises(UserError, match="is chosen from by validation"):
        check_run(plan, "short", silent)  # type: ignore[arg-type]


class _Pool:
    """Runs jobs at once, in this process."""

    full = False
    work = staticmethod(schedule.work)

    def __init__(self, *_):
        self.busy = {}

    def start(self, name, job):
        self.busy[name.folder] = name, self.work(job)

    def ended(self):
        while self.busy:
            yield self.busy.pop(next(iter(self.busy)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_a_killed_candidate_costs_itself_and_is_tried_again(monkeypatch, tmp_path, capsys):
    plan, killed = make_plan(), {"short_seed1"}

    def work(overrides):
        folder = Path(next(line for line in overrides if line.startswith("run_dir="))[9:-1])
        if folder.name in killed:
            return None
        if not folder.exists():
            make_run(folder, int(folder.name[-1]), [10.0 - int(folder.name[-1])])
            made.append(folder.name)
        return Outcome("finished", "", 0.0)

    made: list[str] = []
    monkeypatch.setattr(schedule, "Pool", _Pool)
    monkeypatch.setattr(_Pool, "work", staticmethod(work))
    first = schedule.run_all(jobs(plan, [], tmp_path), 2)
    states = {path.name: outcome.state for path, outcome in first.items() if outcome.state != "finished"}
    assert states == {"short_seed1": "failed"}
    assert "seed 2 of 2 of 3 runs" in capsys.readouterr().out

    killed.clear()
    second = schedule.run_all(jobs(plan, [], tmp_path), 2)
    assert {outcome.state for outcome in second.values()} == {"finished"}
    assert made.count("retrain_seed5") == 1
    assert made[-1] == "short_seed1"
    assert "as chosen before" in capsys.readouterr().out


def test_without_a_candidate_what_needs_it_is_skipped(monkeypatch, tmp_path):
    monkeypatch.setattr(schedule, "Pool", _Pool)
    monkeypatch.setattr(_Pool, "work", staticmethod(lambda _: None))
    outcomes = {path.name: one for path, one in schedule.run_all(jobs(make_plan(), [], tmp_path), 2).items()}
    assert outcomes["search_seed0"].state == "failed"
    assert outcomes["short_seed0"] == Outcome("skipped", "needs search_seed0", 0.0)
    assert outcomes["selected"].state == "skipped"
    assert "no run of short to choose from" in outcomes["selected"].message
    assert outcomes["retrain_seed5"] == Outcome("skipped", "needs selected", 0.0)


@pytest.mark.slow
def test_a_row_of_table_1_from_end_to_end(monkeypatch, tmp_path, capsys):
    """tier=smoke on the digits: the test split is read by the last stages alone, and nothing is run twice."""
    from metalearn.train import loop
    from tasks.examples import Examples

    read, sweep, batch, run = [], Examples.sweep, Examples.batch, loop.run
    at = [""]

    def watched(original):
        def call(self, split, *index):
            read.append((at[0], split))
            return original(self, split, *index)

        return call

    def noted(config, method, directory, *others):
        at[0] = directory.path.name.rpartition("_seed")[0]
        return run(config, method, directory, *others)

    monkeypatch.setattr(Examples, "sweep", watched(sweep))
    monkeypatch.setattr(Examples, "batch", watched(batch))
    monkeypatch.setattr(loop, "run", noted)
    monkeypatch.setattr(schedule, "Pool", _Pool)
    lines = ["tier=smoke", "task=digits", "task.valid_size=238", "log=none", "machine=cpu"]
    assert command.replicate(["darts/table1/random"], lines, None, 1, tmp_path) == 0

    out = capsys.readouterr().out
    assert "10 runs" in out
    assert "darts/table1/random, tier=smoke" in out
    assert out.count("3.29 ± 0.15 %") == 1  # of its own row alone
    assert "tier=smoke is not the paper's scale" in out
    assert "± is the noise of training what was selected once" in out
    assert {stage for stage, split in read if split == "test"} == {"random", "weight_sharing"}
    assert {stage for stage, _ in read} >= {"random_short", "weight_sharing_search", "weight_sharing_short"}
    page = (tmp_path / "darts/table1/random/smoke/report.md").read_text()
    assert "no verdict: tier=smoke is not the paper's scale" in page
    assert "random_selected" in page
    assert "tier=smoke" in page
    read.clear()
    assert command.replicate(["darts/table1/weight_sharing_random"], lines, None, 1, tmp_path) == 0
    assert read == []  # the rows of a table share their runs
