"""Random search with shared weights, step by step against plain torch."""

import copy
import dataclasses
import json

import pytest
import torch
from torch.func import functional_call

import tasks  # noqa: F401
from metalearn.build import build
from metalearn.compose import compose
from metalearn.darts.genotype import load
from metalearn.darts.random_search import RandomSearch
from metalearn.darts.space import one_path
from metalearn.method import Context
from metalearn.registry import UserError

RECURRENT = [
    "method=darts_random_search", "network=darts_recurrent_supernet", "task=python_docs", "machine=cpu",
    "task.batch=2", "task.time=4", "task.evaluation_batch=2", "task.evaluation_time=5", "network.units=6",
    "network.nodes=3", "method.candidates=2", "method.batches=2", "train.steps=2",
]  # fmt: skip


@pytest.fixture(scope="session")
def options():
    return compose(["method=darts_random_search", "network=darts_supernet", "task=digits"]).method


@pytest.fixture
def search(images, tiny_supernet, machine, options):
    """Builds a search of six steps on the tiny task."""

    def make(**changes):
        context = Context(
            task=images(torch.float32),
            network=lambda: tiny_supernet(torch.float32),
            hypergradient=None,
            machine=machine,
            seed=0,
            steps=6,
        )
        return RandomSearch(dataclasses.replace(options, candidates=5, batches=2, **changes), context)

    return make


def test_a_step_is_clipped_sgd_along_one_path(search):
    run = search(schedule="none", learning_rate=0.1, clip=0.5)
    reference = copy.deepcopy(run.network)
    descent = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4)
    for index in range(3):
        genotype = run._draw("path", index)
        mixture = one_path(reference.encode(genotype), next(reference.parameters()))
        batch = run.task.batch("search_train", index)
        descent.zero_grad(set_to_none=False)
        loss = run.task.loss(reference(batch.x, mixture=mixture).logits, batch)
        loss.backward()
        for leaf in reference.parameters():
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        descent.step()
        torch.testing.assert_close(run.step(index)["train/loss"], loss.detach())
    expected = {key: leaf.detach() for key, leaf in reference.named_parameters()}
    torch.testing.assert_close(run.inner.params, expected)


def test_a_step_moves_the_weights_of_its_path_alone(search):
    run = search(momentum=0.0, weight_decay=0.0)
    before = {key: leaf.clone() for key, leaf in run.inner.params.items()}
    genotype = run._draw("path", 0)
    used = run.network.encode(genotype)
    run.step(0)
    moved = {key for key, leaf in run.inner.params.items() if not torch.equal(leaf, before[key])}
    edges = [
        (number, edge) for number, cell in enumerate(run.network.cells) for edge in range(len(cell.edges))
    ]
    for number, edge in edges:
        kind = "reduce" if run.network.cells[number].reduction else "normal"
        chosen = bool(used[kind][edge].any())
        assert chosen or not any(key.startswith(f"cells.{number}.edges.{edge}.") for key in moved)
    assert any(".edges." in key for key in moved)


def test_the_last_step_takes_the_candidate_with_the_lowest_error(search, tmp_path):
    run = search()
    rows = [run.step(index) for index in range(6)]
    errors = []
    for number in range(5):
        mixture = one_path(run.network.encode(run._candidate(number)), next(iter(run.inner.params.values())))
        run.network.train()
        wrong = [
            run.task.metrics(
                functional_call(run.network, run.inner.params, (batch.x,), {"mixture": mixture}).logits, batch
            )["error"]
            for batch in run.task.sweep("search_valid")
        ]
        errors.append(float(torch.stack(wrong).mean()))
    run.artifacts(tmp_path)

    assert "search_valid/best" not in rows[4]
    assert len(set(errors)) > 1
    assert float(rows[5]["search_valid/best"]) == pytest.approx(min(errors))
    assert float(rows[5]["search_valid/mean"]) == pytest.approx(sum(errors) / 5)
    assert load(str(tmp_path / "genotype.json")) == run._candidate(errors.index(min(errors)))
    assert (tmp_path / "genotype.svg").exists()


def test_scores_leave_the_state_as_it_was(search):
    run = search()
    run.step(0)
    before = copy.deepcopy(run.state_dict())
    first = run.evaluate("valid")
    assert set(first) == {"valid/loss", "valid/error"}
    assert run.evaluate("valid") == first
    torch.testing.assert_close(run.state_dict(), before, rtol=0, atol=0)


@pytest.mark.slow
def test_a_search_goes_on_bit_by_bit(search):
    whole, half, rest = search(), search(), search()
    rows = [whole.step(index) for index in range(6)]
    for index in range(3):
        half.step(index)
    rest.load_state_dict(half.state_dict())
    torch.testing.assert_close([rest.step(index) for index in range(3, 6)], rows[3:], rtol=0, atol=0)
    torch.testing.assert_close(rest.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_recurrent_cell_is_found_too(tmp_path):
    run = build(compose(RECURRENT)).method
    rows = [run.step(index) for index in range(2)]
    run.artifacts(tmp_path)
    assert all(value.isfinite() for row in rows for value in row.values())
    assert run.hidden  # type: ignore[attr-defined]
    assert rows[1]["search_valid/best"] <= rows[1]["search_valid/mean"]
    assert len(json.loads((tmp_path / "genotype.json").read_text())["nodes"]) == 3


def test_what_makes_no_sense_is_refused(search):
    with pytest.raises(UserError, match=r"never reads the test split; set train\.test=false"):
        search().evaluate("test")
    with pytest.raises(UserError, match="set hypergradient=none"):
        build(compose([*RECURRENT, "hypergradient=first_order"]))
    with pytest.raises(UserError, match="is no search space"):
        build(compose(["method=darts_random_search", "network=darts_cell", "network.auxiliary=false"]))
