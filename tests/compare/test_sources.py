"""Runs from folders, groups, offline W&B directories and W&B's API."""

import struct
import time
import zlib
from types import SimpleNamespace

import numpy
import pytest

from metalearn.compare import Sources, gather, local, offline, online, transaction_log
from metalearn.registry import UserError


@pytest.fixture
def make(tmp_path):
    """`make(place, name=...)` writes the least that a run directory holds."""

    def run(place: str, name: str = "toy", seed: int = 0, group: str | None = None):
        path = tmp_path / place
        path.mkdir(parents=True)
        log = f"log: {{group: {group}}}\n" if group else ""
        (path / "run.yaml").write_text(f"seed: {seed}\nname: {name}\ntask: {{name: digits}}\n{log}")
        (path / "status.json").write_text('{"state": "finished", "step": 2, "message": ""}')
        (path / "metrics.jsonl").write_text(
            '{"step": 1, "train/loss": 1.5}\n{"step": 2, "train/loss": 0.5}\n'
        )
        return path

    return run


def places(entries):
    return [entry.place.rpartition("/")[2] for entry in entries]


def test_folders_hold_runs_at_any_depth_and_each_counts_once(make, tmp_path):
    first = make("runs/darts/a")
    make("runs/darts/deep/er/b")
    make("runs/darts/a/artifacts/candidates/c")  # what a run holds is no other run

    entries, notices = gather(Sources([tmp_path / "runs", first, first / "."]))

    assert (places(entries), notices) == (["a", "b"], [])


def test_groups_are_names_folders_and_sweeps(make, tmp_path):
    make("runs/1", "darts/cifar10")
    make("runs/2", "darts/mnist", group="sweep7")
    make("runs/3", "maml")

    def found(group):
        return places(gather(Sources(group=group, runs=tmp_path / "runs"))[0])

    assert found("darts") == ["1"]  # the second stands with its sweep
    assert found("sweep7") == ["2"]
    assert found("*m*l*") == ["3"]
    assert found("[13]") == ["1", "3"]
    with pytest.raises(UserError, match=r"group 'mamml'; the groups there: maml, "):
        found("mamml")
    with pytest.raises(UserError, match="is no folder"):
        gather(Sources(group="x", runs=tmp_path / "absent"))


def test_unreadable_runs_are_named_and_left_out(make, tmp_path):
    good, bad, broken = make("good"), make("bad"), make("broken")
    (bad / "run.yaml").write_text("seed: [")
    (broken / "status.json").write_text("{")

    entries, notices = gather(Sources([good, bad, broken]))
    assert places(entries) == ["good"]
    assert [notice.partition(": cannot")[0].partition(": is")[0] for notice in notices] == [
        f"left out: {bad}/run.yaml", f"left out: {broken}/status.json",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"compare: .*run\.yaml: cannot be read"):
        gather(Sources([bad]))
    with pytest.raises(UserError, match="no such folder"):
        gather(Sources([good, tmp_path / "absent"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no run directory"):
        gather(Sources([tmp_path / "empty"]))
    with pytest.raises(UserError, match="name run directories"):
        gather(Sources())


def test_times_are_those_of_the_last_whole_row(make):
    path = make("a")
    rows = "".join(f'{{"step": {n}, "seconds": {n}.5, "joules": {n}}}\n' for n in range(1000))
    (path / "timing.jsonl").write_text(rows + '{"step": 1000, "sec')
    (run,), _ = local.read([path])

    assert (run.seconds, run.joules) == (999.5, 999)


def log_of(records):
    """Records in blocks of 32 KiB, as LevelDB's documentation has it."""
    data = bytearray(struct.pack("<4sHB", b":W&B", 0xBEE1, 0))
    for record in records:
        rest, first = record, True
        while first or rest:
            room = 32768 - len(data) % 32768
            if room < 7:
                data += bytes(room)
                continue
            part, rest = rest[: room - 7], rest[room - 7 :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not rest]
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + part), len(part), kind) + part
            first = False
    return bytes(data)


@pytest.mark.parametrize(
    "sizes", [[5, 0, 70_000, 12], [32768 - 7 - 7 - 3, 9], [32768 - 7 - 7, 9], [1] * 9000]
)
def test_the_log_format(tmp_path, sizes):
    wanted = [bytes([number % 251 + 1]) * size for number, size in enumerate(sizes)]
    path = tmp_path / "run-x.wandb"
    path.write_bytes(log_of(wanted))
    assert list(transaction_log.records(path)) == wanted

    path.write_bytes(log_of(wanted)[:-3])  # killed while it wrote
    assert list(transaction_log.records(path)) == wanted[:-1]
    path.write_bytes(log_of(wanted) + bytes(64))
    assert list(transaction_log.records(path)) == wanted
    broken = bytearray(log_of(wanted))
    broken[7 + 7] ^= 1
    path.write_bytes(broken)
    with pytest.raises(ValueError, match="checksum is wrong at byte 7"):
        list(transaction_log.records(path))


@pytest.mark.slow
def test_a_real_offline_run(tmp_path, monkeypatch):
    """Written by wandb itself, resumed once; a media file is in its history."""
    import wandb

    monkeypatch.setenv("WANDB_SILENT", "true")
    config = {"seed": 4, "name": "toy", "task": {"name": "digits"}, "method": {"name": "sgd", "rate": 1e-3}}
    settings = wandb.Settings(console="off", x_disable_stats=True, x_disable_machine_info=True)
    for steps in (range(1, 6), range(4, 11)):  # the second start goes back to step 4
        time.sleep(1.1)  # W&B names a start's folder for its second
        with wandb.init(
            mode="offline", project="p", group="g", dir=str(tmp_path), id="abcd", resume="allow",
            config=config, settings=settings,
        ) as run:  # fmt: skip
            for step in steps:
                run.log(
                    {"step": step, "train/loss": 1 / step, "odd": float(step)}
                    if step % 2
                    else {"step": step, "train/loss": 1 / step},
                    step=step,
                )
            run.log({"step": steps[-1], "page": wandb.Html("<p>text</p>")}, step=steps[-1])

    for _ in range(50):  # W&B's service may still be writing on a busy machine
        entries, notices = gather(Sources([tmp_path]))
        if entries and entries[0].state == "finished":
            break
        time.sleep(0.2)

    assert not notices
    (found,) = entries
    assert (found.source, found.seed, found.state, found.step) == ("offline W&B", 4, "finished", 10)
    assert found.config == {
        "seed": 4, "name": "toy", "task.name": "digits", "method.name": "sgd", "method.rate": 1e-3,
    }  # fmt: skip
    assert found.series["train/loss"].steps.tolist() == list(range(1, 11))
    assert found.series["train/loss"].values.tolist() == [1 / step for step in range(1, 11)]
    assert found.series["odd"].steps.tolist() == [1, 3, 5, 7, 9]
    assert set(found.final) == {"train/loss", "odd"}

    log = list(offline.below(tmp_path))[-1]
    log.write_bytes(log.read_bytes()[:-20])
    (killed,), _ = offline.read([log])
    assert killed.state == "crashed"
    log.write_bytes(b"nothing")
    assert offline.read([log])[1][0].startswith(f"left out: {log}: cannot be read as a W&B log")


class FakeRun(SimpleNamespace):
    """What the API tells of a run."""

    def scan_history(self, page_size):
        assert page_size
        if self.rows is None:
            raise ConnectionError("gone")
        return iter(self.rows)


def fake_api(**groups):
    """An Api with runs by group."""
    every = [run for runs in groups.values() for run in runs]

    def runs(path, filters=None):
        assert path == "team/project"
        return iter(groups.get(filters["group"], []) if filters else every)

    return lambda: SimpleNamespace(runs=runs)


def online_run(seed, group, rows):
    return FakeRun(
        url=f"https://wandb.ai/team/project/runs/{group}{seed}", group=group, state="finished", rows=rows,
        config={"seed": seed, "name": group, "task": {"name": "digits"}, "_wandb": {"x": 1}},
    )  # fmt: skip


def test_runs_at_wandb():
    rows = [
        {
            "_step": 10,
            "step": 10,
            "train/loss": 0.5,
            "_runtime": 3.0,
            "_timestamp": 1.0,
            "pic": {"_type": "x"},
        },
        {"_step": 20, "step": 20, "train/loss": 0.25, "_runtime": 6.5},
    ]
    foreign = [{"_step": 0, "loss": 1.0, "none": None}, {"_step": 1, "loss": 2.0}]
    api = fake_api(g=[online_run(0, "g", rows), online_run(1, "g", None)], h=[online_run(2, "h", foreign)])

    entries, notices = online.read("team/project", api)

    assert [(entry.seed, entry.step, entry.seconds, entry.final) for entry in entries] == [
        (0, 20, 6.5, {"train/loss": 0.25}), (2, 1, None, {"loss": 2.0}),
    ]  # fmt: skip
    assert entries[0].series["train/loss"].steps.tolist() == [10, 20]
    assert entries[0].config == {"seed": 0, "name": "g", "task.name": "digits"}
    assert entries[0].place == "https://wandb.ai/team/project/runs/g0"
    assert notices == [
        "left out: https://wandb.ai/team/project/runs/g1: W&B cannot be read (ConnectionError: gone)"
    ]
    assert [entry.seed for entry in online.read("team/project/h", api)[0]] == [2]


def test_mistakes_at_wandb():
    with pytest.raises(UserError, match="must be entity/project"):
        online.read("project")
    with pytest.raises(UserError, match="group 'gg'; the groups there: g"):
        online.read("team/project/gg", fake_api(g=[online_run(0, "g", [])]))
    with pytest.raises(UserError, match="the project has no runs"):
        online.read("team/project", fake_api())

    def no_key():
        raise ValueError("No API key configured. Use `wandb login`")

    def no_network():
        raise ConnectionError("Failed to verify credentials with http://x: refused")

    with pytest.raises(UserError, match=r"W&B wants a key .*wandb login, or WANDB_API_KEY; local runs"):
        online.read("team/project", no_key)
    with pytest.raises(UserError, match=r"W&B cannot be read \(ConnectionError: Failed to verify"):
        online.read("team/project", no_network)


def test_values_are_numpy_whatever_the_source(make):
    (run,), _ = local.read([make("a")])
    assert run.series["train/loss"].values.dtype == numpy.float64
