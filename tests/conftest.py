"""Fixtures that all tests share."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from metalearn import cli

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side; read when torch is imported


def _data_dir() -> Path | None:
    beside = Path(__file__).parents[2] / "shared" / "data"
    named = os.environ.get("METALEARN_DATA_DIR")
    return Path(named) if named else beside if beside.exists() else None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data sets; tests that need it are skipped where it is absent."""
    path = _data_dir()
    if path is None:
        pytest.skip("no data here: set METALEARN_DATA_DIR to a folder with mnist/, cifar10/, ptb/, ...")
    return path


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with imagenet/: three classes of noise of different sizes, 12 + 4 images each."""
    import numpy as np
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for label, name in enumerate(("n01", "n02", "n03")):
        for part, count in (("train", 12), ("val", 4)):
            (folder / "imagenet" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(60 * label, 60 * label + 100, (40 + 3 * number, 60 - number, 3))
                path = folder / "imagenet" / part / name / f"{name}_{number}.JPEG"
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


@pytest.fixture
def metalearn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run `metalearn ARGUMENTS` in this process, in an empty folder; exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["metalearn", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
