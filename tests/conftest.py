"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest


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
