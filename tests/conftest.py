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
