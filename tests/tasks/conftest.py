"""How the tests of this folder build tasks: from conf/, with decoded data kept out of the user's cache."""

from pathlib import Path

import pytest
import torch

import metalearn.options  # noqa: F401
import tasks  # noqa: F401
from metalearn import registry
from metalearn.compose import compose
from tasks.catalogue import availability

# a set that no test can have is tested on a small one of its kind: options, and the fixture of its folder
SMALL = {
    "imagenet": (
        "batch=4",
        "evaluation_batch=5",
        "valid_size=8",
        "side=32",
        "resize=36",
        "threads=2",
        "ahead=1",
    )
}
FOLDER = {"imagenet": "photographs"}


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of this session's own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("METALEARN_CACHE_DIR", str(folder))
        yield folder


@pytest.fixture(scope="session")
def options():
    """options(name, *overrides): what conf/ gives for a task."""
    known = {}

    def get(name, *overrides):
        if (name, overrides) not in known:
            lines = [f"task={name}", *(f"task.{line}" for line in (*SMALL.get(name, ()), *overrides))]
            known[name, overrides] = compose(lines).task
        return known[name, overrides]

    return get


@pytest.fixture(scope="session")
def make_fresh(request, options):
    """make_fresh(name, *overrides, seed=0, data_dir=...): a task as `metalearn train` builds it, offline."""
    embedded = ("digits", "python_docs", "quadratic", "rastrigin", "rosenbrock", "sinusoid", "two_moons")

    def build(name, *overrides, seed=0, data_dir=None):
        if data_dir is None:
            data_dir = (
                Path("none") if name in embedded else request.getfixturevalue(FOLDER.get(name, "data_dir"))
            )
            if availability(name, data_dir).startswith("missing"):
                pytest.skip(f"no {name} in {data_dir}")
        return registry.build(
            "task",
            options(name, *overrides),
            seed=seed,
            data_dir=data_dir,
            download=False,
            device=torch.device("cpu"),
        )

    return build


@pytest.fixture(scope="session")
def make(make_fresh):
    """The same, but each task is built once: tests must leave it as it is."""
    built = {}

    def get(name, *overrides):
        if (name, overrides) not in built:
            built[name, overrides] = make_fresh(name, *overrides)
        return built[name, overrides]

    return get
