"""Energy is read from fabricated counters: a powercap tree, an NVML, samples of power."""

import subprocess
from types import SimpleNamespace

import pytest
from noisy_quadratic import NoisyQuadratic, configuration, train

from metalearn import records
from metalearn.train import energy
from metalearn.train.files import read_json
from metalearn.train.rows import read_rows

RANGE = 262_143_328_850  # uJ, of a package


@pytest.fixture
def powercap(tmp_path):
    """`powercap(zone=(name, uJ), ...)` writes the tree."""

    def make(**zones):
        for zone, (name, value) in zones.items():
            folder = tmp_path / "powercap" / zone.replace("_", ":").replace("rapl", "intel-rapl")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "name").write_text(f"{name}\n")
            (folder / "energy_uj").write_text(f"{value}\n")
            (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
        return tmp_path / "powercap"

    return make


def test_packages_and_memory_are_added_and_what_is_part_of_them_is_not(powercap):
    tree = powercap(
        rapl_0=("package-0", 5), rapl_1=("package-1", 7), rapl_2=("psys", 1), rapl_0_0=("core", 3),
        rapl_0_1=("dram", 9),
    )  # fmt: skip
    meter = energy.meter([], tree)
    assert meter.joules() == 0
    powercap(
        rapl_0=("package-0", 2_000_005), rapl_1=("package-1", 500_007), rapl_2=("psys", 9_000_000),
        rapl_0_0=("core", 1_000_000), rapl_0_1=("dram", 250_009),
    )  # fmt: skip
    assert meter.joules() == 2.75
    assert meter.note == {"source": "Linux RAPL: package-0, dram, package-1", "reason": None}


def test_a_counter_that_starts_over(powercap):
    meter = energy.meter([], powercap(rapl_0=("package-0", RANGE - 1_000_000)))
    powercap(rapl_0=("package-0", 500_000))
    assert meter.joules() == 1.5
    powercap(rapl_0=("package-0", 700_000))
    assert meter.joules() == pytest.approx(1.7)


def test_what_cannot_be_read_says_why(powercap, tmp_path):
    assert energy.meter([], tmp_path / "none").note == {"source": None, "reason": energy.UNTOLD}
    tree = powercap(rapl_0=("package-0", "denied"))
    meter = energy.meter([], tree)
    assert meter.joules() is None
    assert "left to root" in str(meter.note["reason"])


def test_one_machine_of_several_is_not_taken_for_all(powercap, monkeypatch):
    tree = powercap(rapl_0=("package-0", 1))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert "several machines" in str(energy.meter([], tree).note["reason"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert energy.meter([], tree).joules() == 0


def test_a_counter_that_vanishes_ends_the_measurement_alone(powercap):
    tree = powercap(rapl_0=("package-0", 1))
    meter = energy.meter([], tree)
    (tree / "intel-rapl:0" / "energy_uj").unlink()
    assert meter.joules() is None
    powercap(rapl_0=("package-0", 9))
    assert meter.joules() is None, "what was missed is not known again"


class _Nvml(SimpleNamespace):
    """pynvml as far as it is used: mJ by UUID."""

    def nvmlInit(self):  # noqa: N802
        self.open = True

    def nvmlShutdown(self):  # noqa: N802
        self.open = False

    def nvmlDeviceGetHandleByUUID(self, identity):  # noqa: N802
        return identity

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):  # noqa: N802
        return self.counters[handle]


def test_gpus_and_processors_are_added(powercap):
    nvml = _Nvml(counters={"GPU-a": 1_000, "GPU-b": 50_000, "GPU-c": 0})
    tree = powercap(rapl_0=("package-0", 0))
    with energy.meter(["GPU-a", "GPU-b"], tree, nvml) as meter:
        nvml.counters = {"GPU-a": 3_500, "GPU-b": 51_000, "GPU-c": 9}
        powercap(rapl_0=("package-0", 4_000_000))
        assert meter.joules() == 2.5 + 1 + 4
        assert meter.note["source"] == "NVML total energy of 2 GPUs and Linux RAPL: package-0"
    assert not nvml.open
    assert meter.joules() is None


def test_without_nvml_power_is_sampled(monkeypatch, tmp_path):
    clock = [0.0]
    monkeypatch.setattr(energy.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="100.0\n300.0\n"))
    silent = subprocess.Popen
    monkeypatch.setattr(energy.subprocess, "Popen", lambda *_, **options: silent(["sleep", "30"], **options))
    power = energy.Power(["GPU-a", "GPU-b"], lambda: clock[0])
    clock[0] = 2.0
    power.see(1, 500.0)
    clock[0] = 5.0
    assert power.joules() == 2 * (100 + 300) + 3 * (100 + 500)
    power.close()
    with pytest.raises(OSError, match="has ended"):
        power.joules()

    def absent(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(energy.subprocess, "run", absent)
    assert "neither NVML nor nvidia-smi" in str(energy.meter(["GPU-a"], tmp_path).note["reason"])


class _Hot(NoisyQuadratic):
    """Every step takes 2 J of a fabricated package; breaks off before one of them."""

    def __init__(self, powercap, at=None):
        super().__init__()
        self._powercap, self._at = powercap, at

    def step(self, index):
        if index == self._at:
            raise RuntimeError
        zone = self._powercap() / "intel-rapl:0" / "energy_uj"
        zone.write_text(str(int(zone.read_text()) + 2_000_000))
        return super().step(index)


def test_a_run_adds_up_its_starts_and_no_byte_of_its_metrics_changes(powercap, tmp_path, monkeypatch):
    plain = train(configuration(tmp_path / "plain"), NoisyQuadratic())
    assert records.read(plain).joules is None
    assert read_json(plain / "provenance.json")["energy"]["source"] is None

    monkeypatch.setattr(energy, "POWERCAP", powercap(rapl_0=("package-0", 0)))
    monkeypatch.setattr(energy.meter, "__defaults__", (energy.POWERCAP, None))
    config = configuration(tmp_path / "measured")
    with pytest.raises(RuntimeError):
        train(config, _Hot(powercap, at=11))
    before = read_rows(tmp_path / "measured" / "timing.jsonl")[-1]
    run = train(config, _Hot(powercap))

    steps, again = config.train.steps, before["step"] - 8  # it goes on after step 8
    assert records.read(run).joules == 2.0 * (steps + again)
    assert again > 0, "lost steps took energy too"
    assert (run / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()


def test_a_start_that_could_not_tell_leaves_the_sum_unknown(powercap, tmp_path, monkeypatch):
    config = configuration(tmp_path / "run")
    powercap(rapl_0=("package-0", 0))
    with pytest.raises(RuntimeError):
        train(config, _Hot(powercap, at=11))
    monkeypatch.setattr(energy.meter, "__defaults__", (powercap(), None))
    assert records.read(train(config, _Hot(powercap))).joules is None
