"""The ledger of deviations: its switches exist, `ours` is what conf/ has, effects are what reports say."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from scipy.stats import ttest_rel

from benchmarks.deviations import FOLDER, Measurement, effect, ledger, page, place, setup
from metalearn import cli, registry
from metalearn.compose import CONF, compose
from metalearn.config import typed
from metalearn.records import flat

cli.register_all()
ENTRIES = ledger()
REQUIRED = {"name", "switch", "paper", "code", "ours", "source", "effect", "measured"}
ROOT = Path(__file__).parents[1]
UNMEASURED = "not measured"
BLOCK = {
    "scale": "a test",
    "recipe": "quickstart/l2l_quadratic_lstm",
    "overrides": ["train.steps=2"],
    "variants": {"ours": [], "theirs": ["method.count_last=true"]},
    "seeds": [0, 1, 2],
    "metrics": [{"metric": "test/final_loss", "goal": "min", "unit": ""}],
}


@cache
def stated(of: str) -> dict[str, Any]:
    """What conf/OF.yaml itself says, by dotted names; a recipe's keys are checked by test_recipes."""
    group, values = of.partition("/")[0], OmegaConf.to_container(OmegaConf.load(CONF / f"{of}.yaml"))
    assert isinstance(values, dict)
    if group == "recipe":
        return flat(values)
    chosen = typed(registry.entry(group, values["name"]).options, values, "")  # type: ignore[arg-type]
    return flat({group: OmegaConf.to_container(OmegaConf.structured(chosen))})


@cache
def composed(of: str) -> dict[str, Any]:
    """All options of the run that a recipe is."""
    return flat(OmegaConf.to_container(OmegaConf.structured(compose([f"recipe={of.partition('/')[2]}"]))))


def value_of(switch: str, of: str) -> Any:
    """The switch's value where `of` says it or, for a recipe, takes it from; raises KeyError."""
    here = stated(of)
    return here[switch] if switch in here or not of.startswith("recipe/") else composed(of)[switch]


def test_entries_say_everything():
    missing = {name: REQUIRED - set(entry) for name, entry in ENTRIES.items() if REQUIRED - set(entry)}
    extra = {name: set(entry) - REQUIRED - {"family", "of", "measure"} for name, entry in ENTRIES.items()}
    assert (missing, {name: keys for name, keys in extra.items() if keys}) == ({}, {})
    texts = REQUIRED - {"switch", "measured"}
    assert [(n, key) for n, e in ENTRIES.items() for key in texts if not str(e[key] or "").strip()] == []
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in ENTRIES)


def test_switches_exist_and_ours_begins_with_their_value():
    stale = []
    for name, entry in ENTRIES.items():
        if entry["switch"] is None:
            continue
        said, there = yaml.safe_load(entry["ours"].partition(": ")[0]), value_of(entry["switch"], entry["of"])
        if there != said:
            stale.append((name, entry["switch"], said, there))
    assert stale == []


def test_entries_without_a_switch_say_why():
    silent = [n for n, e in ENTRIES.items() if e["switch"] is None and "no switch" not in e["ours"].lower()]
    assert silent == []


def test_effects_are_measured_or_say_that_they_are_not():
    """A measured effect is the result file's own sentence; of other reports, every number is in them."""
    for name, entry in ENTRIES.items():
        if entry["measured"] is None:
            assert entry["effect"] == UNMEASURED, name
            continue
        report = (ROOT / entry["measured"]["report"]).read_text("utf-8")
        assert entry["measured"]["command"], name
        if "measure" in entry:
            result = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
            assert " ".join(entry["effect"].split()) == effect(result), name
            assert entry["measured"] == {
                "report": f"benchmarks/results/deviations/{name}.md",
                "command": result["facts"]["command"],
            }
            assert result["setup"] | {"scale": result["scale"]} == setup(ENTRIES, name), name
            assert report == page(result, result["facts"]), name
        else:
            assert [n for n in re.findall(r"\d+\.\d+", entry["effect"]) if n not in report] == [], name


def test_every_result_has_its_entry():
    measured = {name for name, entry in ENTRIES.items() if entry["measured"] and "measure" in entry}
    assert {path.stem for path in FOLDER.glob("*.json")} == measured


def test_a_switch_that_is_measured_is_the_one_that_varies():
    """Some variant overrides the entry's switch, or chooses another option of its group."""
    for name, entry in ENTRIES.items():
        if not entry.get("measure"):
            continue
        block = setup(ENTRIES, name)
        assert block is not None
        keys = {text.partition("=")[0] for texts in block["variants"].values() for text in texts}
        assert keys & {entry["switch"], entry["switch"].partition(".")[0]}, name


def _finished(folder: Path, variant: str, seed: int, loss: float) -> None:
    """A run directory as a finished run leaves it."""
    run = place(folder, [f"recipe={BLOCK['recipe']}", *BLOCK["overrides"], *BLOCK["variants"][variant]], seed)
    run.mkdir(parents=True)
    (run / "run.yaml").write_text(f"seed: {seed}\ntask: {{name: quadratic}}\n")
    (run / "status.json").write_text('{"state": "finished", "step": 2}')
    (run / "metrics.jsonl").write_text(json.dumps({"step": 2, "test/final_loss": loss}) + "\n")


def test_runs_are_compared_in_pairs(tmp_path):
    values = {"ours": [1.0, 2.0, 4.0], "theirs": [1.5, 2.25, 4.875]}
    for variant, losses in values.items():
        for seed, loss in enumerate(losses):
            _finished(tmp_path, variant, seed, loss)

    result = Measurement("x", BLOCK, tmp_path, only_read=True).result("y")

    interval = ttest_rel(values["theirs"], values["ours"]).confidence_interval(0.95)
    (found,) = result["claims"]
    assert found["difference"] == pytest.approx((interval.low + interval.high) / 2)
    assert found["half_width"] == pytest.approx((interval.high - interval.low) / 2)
    assert effect(result).startswith("a test. test/final_loss: no clear difference between ours and theirs: ")


def test_runs_that_are_not_there_are_told(tmp_path):
    for seed in (0, 1, 2):
        _finished(tmp_path, "ours", seed, 1.0)
    _finished(tmp_path, "theirs", 1, 2.0)
    result = Measurement("x", BLOCK, tmp_path, only_read=True).result("y")
    assert result["values"]["test/final_loss"] == {"ours": dict.fromkeys(range(3), 1.0), "theirs": {1: 2.0}}
    assert effect(result).endswith("; of theirs seed 0 absent, seed 2 absent.")


@pytest.mark.slow
def test_a_variant_runs_once_and_what_follows_from_it(tmp_path):
    small = ["method.horizon=20", "method.valid_problems=1", "method.test_problems=1", "task.batch=4"]
    then = {"recipe": "learned_optimizers/quadratic_applied", "overrides": ["method.optimizer={run}", *small]}
    metrics = [{"metric": "test/final_loss", "stage": "then", "goal": "min", "unit": ""}]
    block = {**BLOCK, "overrides": ["train.steps=2", *small], "variants": {"ours": []}, "seeds": [3]}
    block |= {"then": then, "metrics": metrics}
    first = Measurement("x", block, tmp_path, only_read=False)
    values = first.result("y")["values"]["test/final_loss"]["ours"]
    assert (list(values), len(first.used)) == ([3], 2)
    again = Measurement("x", block, tmp_path, only_read=True)
    assert again.result("y")["values"]["test/final_loss"]["ours"] == values
    assert again.lost == {}
