"""How the tests of this folder build tasks: from conf/, with decoded data kept out of the user's cache."""

from itertools import pairwise
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
    ),
    "wmt14_en_fr": ("batch=8", "evaluation_batch=20", "pieces=150", "coverage=1.0", "piece_pairs=200"),
    "neural_art": (
        "batch=3",
        "side=16",
        "features=random",
        "thinning=16",
        "content_layers=[conv2_1]",
        "style_layers=[conv1_1,conv2_1]",
    ),
    "iam": ("batch=2", "evaluation_batch=5", "split=official", "least_points=12"),
}
FOLDER = {"imagenet": "photographs", "iam": "pen_lines", "wmt14_en_fr": "sentence_pairs"}


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
    embedded = (
        "branin",
        "digits",
        "gaussian_process",
        "goldstein_price",
        "hartmann3",
        "hartmann6",
        "lasso",
        "logistic_regression",
        "neural_art",
        "pen_strokes",
        "phrases",
        "python_docs",
        "quadratic",
        "rastrigin",
        "rosenbrock",
        "sinusoid",
        "two_moons",
    )

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


@pytest.fixture(scope="session")
def sentence_pairs(tmp_path_factory):
    """A data folder with wmt14_en_fr/: 200 + 30 + 30 pairs of phrases."""
    from tasks.phrases import make_pairs

    folder, pairs = tmp_path_factory.mktemp("sentence_pairs") / "wmt14_en_fr", make_pairs(260)
    folder.mkdir()
    for split, chosen in (("train", pairs[:200]), ("valid", pairs[200:230]), ("test", pairs[230:])):
        for side, language in enumerate(("en", "fr")):
            (folder / f"{split}.{language}").write_text("".join(pair[side] + "\n" for pair in chosen))
    return folder.parent


@pytest.fixture(scope="session")
def pen_lines(tmp_path_factory):
    """A data folder with iam_online/: five forms, 20 lines in trainset.txt, 6 in each other list."""
    rng = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("pen_lines") / "iam_online"
    lists = {
        "trainset.txt": {"a01-000u": 10, "a01-001z": 10},
        "testset_v.txt": {"b01-000a": 6},
        "testset_t.txt": {"c01-0001": 6},
        "testset_f.txt": {"d01-000x": 6},
    }
    for name, forms in lists.items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("".join(f"{form}\n" for form in forms))
        for form, count in forms.items():
            for number in range(1, count + 1):
                path = folder / "lineStrokes" / form[:3] / form[:7] / f"{form}-{number:02}.xml"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(_line_of_xml(4 if number == 5 and form[0] == "a" else 12 + number, rng))
    return folder.parent


def _line_of_xml(points, rng):
    """A line of writing in IAM-OnDB's format: three strokes, integer coordinates."""
    places = (torch.randn(points, 2, generator=rng) * 40 + torch.tensor([9.0, 0.0])).cumsum(0) + 5000
    bounds = [0, points // 3, points // 2, points]
    strokes = [
        "<Stroke colour='black' start_time='0.00' end_time='1.00'>"
        + "".join(f"<Point x='{int(x)}' y='{int(y)}' time='0.5'/>" for x, y in places[first:last].tolist())
        + "</Stroke>"
        for first, last in pairwise(bounds)
    ]
    start = "<WhiteboardCaptureSession><WhiteboardDescription/><StrokeSet>"
    return f"<?xml version='1.0'?>{start}{''.join(strokes)}</StrokeSet></WhiteboardCaptureSession>"
