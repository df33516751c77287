"""What it costs where paper, official code and this suite differ: entries of conf/deviations, measured.

`uv run python -m benchmarks.deviations [NAME ...] [--runs FOLDER] [--save] [--only-read]`. An entry's
`measure` block names a recipe, what all variants have in common, the variants (the first is ours), seeds and
metrics; `like` takes what it does not say from another entry's. `then` is a second run of each, where {run}
is the directory of the first, e.g. the training from scratch of the cell that a search has found. All runs
go through metalearn.work; finished ones are not run again. Each variant is held against ours, seed by seed,
with 95 % t-intervals. --save writes results/deviations/NAME.{json,md}; --only-read takes the runs that are
there.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from metalearn import records
from metalearn.compose import CONF
from metalearn.registry import UserError
from metalearn.report.claims import claim, summary
from metalearn.work import work

FOLDER = Path(__file__).parent / "results" / "deviations"
ALWAYS = ("machine=cpu", "machine.threads=1", "log=none", "log.progress=false")
DIRTY = " (+: with changes in the checkout that were not committed)"
Entry = dict[str, Any]
Values = dict[int, float]  # by seed


def ledger(folder: Path = CONF / "deviations") -> dict[str, Entry]:
    """All entries by name, each with its family. Raises UserError for a name that comes twice."""
    found: dict[str, Entry] = {}
    for path in sorted(folder.glob("*.yaml")):
        entries = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(entries, list)
        for entry in entries:
            if entry["name"] in found:
                raise UserError(f"{path}: {entry['name']} is there twice; give one of them another name")
            found[entry["name"]] = {**entry, "family": path.stem}
    return found


def setup(entries: Mapping[str, Entry], name: str) -> Entry | None:
    """An entry's `measure` block, completed by the one it is like; None: not measured by this program."""
    block = entries[name].get("measure")
    if block is None or "like" not in block:
        return block
    other = setup(entries, block["like"])
    assert other is not None
    return {**other, **{key: value for key, value in block.items() if key != "like"}}


def effect(result: Mapping[str, Any]) -> str:
    """A result in words: its scale, and every variant against ours."""
    words = [f"{found['metric']}: {found['statement']}" for found in result["claims"]]
    lost = [f"of {name} {text}" for name, text in result["lost"].items()]
    return f"{result['scale']}. " + "; ".join([*words, *lost]) + "."


def place(folder: Path, overrides: list[str], seed: int) -> Path:
    """Where the run of these overrides lies, whichever entry it is of."""
    digest = hashlib.sha256("\n".join(overrides).encode()).hexdigest()[:12]
    return folder / f"{digest}_seed{seed}"


class Measurement:
    """One entry, run and read; entries share runs."""

    def __init__(self, name: str, block: Entry, folder: Path, only_read: bool) -> None:
        self.name, self.block, self.folder, self.only_read = name, block, folder, only_read
        self.lost: dict[str, str] = {}
        self.used: list[Path] = []  # the runs that the result is of

    def result(self, family: str) -> dict[str, Any]:
        """Run what is not done, and compare. Seeds are the outer loop: what breaks off leaves pairs."""
        found: dict[str, list[tuple[int, dict[str, Path]]]] = {name: [] for name in self.block["variants"]}
        for seed in self.block["seeds"]:
            for variant in found:
                runs = self._runs(variant, seed)
                if runs is not None:
                    found[variant].append((seed, runs))
        values = {
            metric["metric"]: {
                variant: {seed: _value(runs, metric) for seed, runs in done}
                for variant, done in found.items()
            }
            for metric in self.block["metrics"]
        }
        return {
            "name": self.name,
            "family": family,
            "scale": " ".join(self.block["scale"].split()),
            "setup": {key: value for key, value in self.block.items() if key != "scale"},
            "values": values,
            "claims": list(self._claims(values)),
            "lost": self.lost,
        }

    def _runs(self, variant: str, seed: int) -> dict[str, Path] | None:
        """The run of a variant and the one that follows from it; None if one did not finish."""
        block = self.block
        overrides = [f"recipe={block['recipe']}", *block.get("overrides", []), *block["variants"][variant]]
        runs = {"run": self._run(variant, overrides, seed)}
        if runs["run"] is not None and "then" in block:
            then = [text.replace("{run}", str(runs["run"])) for text in block["then"]["overrides"]]
            runs["then"] = self._run(variant, [f"recipe={block['then']['recipe']}", *then], seed)
        return None if None in runs.values() else {stage: path for stage, path in runs.items() if path}

    def _run(self, variant: str, overrides: list[str], seed: int) -> Path | None:
        path = place(self.folder, overrides, seed)
        state = records.read(path).state if path.exists() else "absent"
        if state != "finished" and not self.only_read:
            done = work([*overrides, *ALWAYS, f"seed={seed}", f"run_dir={path}"])
            state, said = done.state, f"{done.state} in {done.seconds:.0f} s {done.message}"
            print(f"{self.name}: {variant}, seed {seed}: {said}", flush=True)
            if state == "interrupted":
                raise SystemExit("stopped; the same command goes on")
        if state == "finished":
            self.used.append(path)
            return path
        before = self.lost.get(variant)
        self.lost[variant] = f"{before}, seed {seed} {state}" if before else f"seed {seed} {state}"
        return None

    def _claims(self, values: Mapping[str, Mapping[str, Values]]) -> Iterator[dict[str, Any]]:
        """Ours against each variant, in each metric."""
        for metric in self.block["metrics"]:
            of = values[metric["metric"]]
            ours, *others = of
            for other in others:
                found = claim({ours: of[ours], other: of[other]}, metric["goal"], metric["unit"])
                yield {"metric": metric["metric"], "against": other, **found._asdict()}


def _value(runs: Mapping[str, Path], metric: Mapping[str, str]) -> float:
    return records.read(runs[metric.get("stage", "run")]).last(metric["metric"])


def page(result: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    """The result as markdown: means ± sample deviations, claims, where and when."""
    metrics = result["setup"]["metrics"]
    lines = [f"# {result['name']} ({result['family']})", "", f"{result['scale']}.", ""]
    lines += [
        "| variant | overrides | " + " | ".join(f"{m['metric']} {m['unit']}".strip() for m in metrics) + " |"
    ]
    lines += ["| --- | --- |" + " ---: |" * len(metrics)]
    for variant, overrides in result["setup"]["variants"].items():
        cells = [_cell(result["values"][metric["metric"]][variant]) for metric in metrics]
        lines += [f"| {variant} | {' '.join(f'`{text}`' for text in overrides)} | {' | '.join(cells)} |"]
    lines += [
        "",
        "Means ± sample deviations. Paired by seed, with 95 % t-intervals; each interval stands for itself:",
        "",
    ]
    lines += [f"- {found['metric']}: {found['statement']}" for found in result["claims"]]
    lines += [f"- {variant}: {text}" for variant, text in result["lost"].items()]
    lines += ["", f"All variants: `{_command(result['setup'])}`", ""]
    if "then" in result["setup"]:
        lines += [f"Then, of each: `{_command(result['setup']['then'])}`", ""]
    return "\n".join([*lines, *(f"{key}: {value}  " for key, value in facts.items())]) + "\n"


def _command(run: Mapping[str, Any]) -> str:
    return " ".join([f"recipe={run['recipe']}", *run.get("overrides", [])])


def _cell(values: Values) -> str:
    return f"{summary(list(values.values()))} ({len(values)})" if values else "-"


def facts(name: str, runs: list[Path]) -> dict[str, str]:
    """When, by which commits and on what these runs were made, as they recorded it themselves."""
    told = [records.read(run).provenance for run in runs]
    commits = {told_by["git"]["commit"][:10] + ("+" if told_by["git"]["dirty"] else "") for told_by in told}
    hardware, versions = told[-1]["hardware"], told[-1]["versions"]
    return {
        "date": max(told_by["started"] for told_by in told)[:10],
        "commit": ", ".join(sorted(commits)) + (DIRTY if any("+" in commit for commit in commits) else ""),
        "machine": f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} thread, "
        f"{hardware['memory_gib']} GiB, {hardware['gpu'] or 'no GPU'}",
        "versions": ", ".join(
            f"{package} {versions[package]}" for package in ("python", "torch", "metalearn")
        ),
        "command": f"python -m benchmarks.deviations {name} --save",
    }


def _save(result: dict[str, Any], told: Mapping[str, str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{result['name']}.json").write_text(json.dumps({**result, "facts": told}, indent=1) + "\n")
    (FOLDER / f"{result['name']}.md").write_text(page(result, told))


def main() -> None:
    """The entries named, or all that can be measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--runs", type=Path, default=Path("runs/deviations"))
    parser.add_argument("--save", action="store_true")
    parser.add_argument("--only-read", action="store_true")
    options = parser.parse_args()
    entries = ledger()
    for name in options.names or [name for name in entries if entries[name].get("measure")]:
        block = setup(entries, name)
        assert block is not None, f"{name} has no measure block"
        measurement = Measurement(name, block, options.runs.resolve(), options.only_read)
        result = measurement.result(entries[name]["family"])
        print(f"{name}: {effect(result)}", flush=True)
        if options.save:
            _save(result, facts(name, measurement.used))


if __name__ == "__main__":
    main()
