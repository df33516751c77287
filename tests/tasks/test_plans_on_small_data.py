"""Plans whose data are the user's own, at tier=smoke from start to test, on files made up here."""

import random

import pytest

from metalearn import cli
from metalearn.replicate import load
from metalearn.replicate.jobs import jobs
from metalearn.work import work
from tasks import corpora, files, sources

cli.register_all()

# the data, what makes so few of them enough, and a stage of each kind of network (test_recipes.py has all)
PLANS = {
    "darts/table3/darts": ("photographs", ["task.threads=2", "task.ahead=1"], ["second_order"]),
    "darts/table4/darts": ("articles", [], ["second_order", "enas"]),
    "hypernetworks/table4": ("encyclopedia", [], ["ln_hyperlstm_1800", "lstm_1800"]),
    "hypernetworks/table5": ("pen_lines", ["task.least_points=12"], ["hyperlstm_900", "lstm_400x3_plain"]),
    "hypernetworks/table6": (
        "sentence_pairs",
        ["task.pieces=150", "task.coverage=1.0"],
        ["hyperlstm", "lstm"],
    ),
}


@pytest.fixture
def articles(tmp_path, monkeypatch):
    """A data folder with WikiText-2's three files, a few hundred words each, known by their digests."""
    draw, words = random.Random(0), ["<unk>", "@-@", *(f"w{number}" for number in range(40))]
    texts = {
        split: "".join(f" {' '.join(draw.choices(words, k=9))} \n" for _ in range(lines))
        for split, lines in {"train": 90, "valid": 40, "test": 40}.items()
    }
    counts = {split: 10 * text.count("\n") for split, text in texts.items()}
    seen = {word for text in texts.values() for word in text.split()}
    monkeypatch.setattr(corpora, "WIKITEXT2_COUNTS", {"words": len(seen) + 1, **counts})
    (tmp_path / "wikitext-2").mkdir()
    for split, text in texts.items():
        known, content = sources.WIKITEXT2[split], text.encode()
        digest = files.digest_of(content, known.digest)
        monkeypatch.setitem(sources.WIKITEXT2, split, known._replace(digest=digest))
        (tmp_path / "wikitext-2" / f"wiki.{split}.tokens").write_bytes(content)
    return tmp_path


@pytest.fixture
def encyclopedia(tmp_path, monkeypatch):
    """A data folder with an enwik8 of 400,000 bytes, known by its digest."""
    content = b"".join(b"<page id='%d'>\n\t<title>Caf\xc3\xa9</title>\n" % number for number in range(12_000))
    content = content[:400_000]
    monkeypatch.setattr(corpora, "ENWIK8_COUNTS", {"symbols": len(set(content)), "bytes": len(content)})
    known = sources.ENWIK8._replace(digest=files.digest_of(content, sources.ENWIK8.digest))
    monkeypatch.setattr(sources, "ENWIK8", known)
    (tmp_path / "enwik8").write_bytes(content)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANS)
def test_a_plan_runs_at_smoke_size(name, request, tmp_path):
    fixture, few, stages = PLANS[name]
    here = [f"data_dir={request.getfixturevalue(fixture)}", "download=false", "log=none", "machine=cpu"]
    (plan,) = load(name, [0], "smoke")
    found = {job.stage: job for job in jobs(plan, [*few, *here], tmp_path / "runs")}
    for stage in stages:
        outcome = work(found[stage].overrides)
        assert outcome.state == "finished", outcome.message
        assert f'"{plan.table.metric}"' in (found[stage].folder / "metrics.jsonl").read_text()
