"""The controls: the same functions, points in the box, proposals that are what they claim to be."""

import json

import pytest
import torch

from metalearn.cli import register_all
from metalearn.compose import compose
from metalearn.learned_optimizers.black_box.functions import fresh, single
from metalearn.learned_optimizers.black_box.losses import expected_improvement
from metalearn.learned_optimizers.black_box.proposals import make_proposer
from metalearn.registry import UserError


def test_functions_are_those_of_the_network(box):
    """Function by function or in batches, `single` and `fresh` give the same ones."""
    task = box.task()
    together = list(fresh(task, "test", 6))
    alone = [single(task, "test", number) for number in range(6)]
    assert [len(batch.x) for batch in together] == [4, 2]
    assert torch.equal(torch.cat([batch.x for batch in together]), torch.cat([batch.x for batch in alone]))
    asked = torch.linspace(0, 1, 12, dtype=torch.float64).view(6, 2)
    values = [task.query(task.begin(one), asked[i : i + 1])[0] for i, one in enumerate(alone)]
    first, _ = task.query(task.begin(together[0]), asked[:4])
    torch.testing.assert_close(torch.cat(values[:4]), first)


def test_a_control_sees_what_its_function_answers(box):
    """Its trajectory, asked again of the batch that the network is tested on."""
    task = box.task("branin")
    method = box.controls(task)
    for index in range(6):
        method.step(index)
    asked = []
    for number in range(4):
        key = (method.seed, "black_box_controls", "random", number)
        proposer = make_proposer("random", method.options, task, 2, key)
        asked.append(torch.cat([proposer.ask({}) for _ in range(5)]))
    functions = task.begin(next(fresh(task, "test", 4)))
    values = torch.stack([task.query(functions, x)[0] for x in torch.stack(asked).unbind(1)])
    torch.testing.assert_close(method.values[0, :, :4], values)
    expected = method.values[0].amin(0).mean()
    torch.testing.assert_close(method.evaluate("test")["test/best_value"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gp", "tpe", "gp_true"])
def test_proposals_are_in_the_box_and_repeatable(box, name):
    task = box.task("gaussian_process", "dimension=3")
    method = box.controls(task, f"optimizers=[{name}]", "horizon=8")
    (first, seconds), (again, _) = method.searched(name, 1), method.searched(name, 1)
    assert torch.equal(first, again)
    assert seconds > 0
    assert not torch.equal(first, method.searched(name, 2)[0])


@pytest.mark.parametrize("dimension", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_true_prior_proposes_the_largest_expected_improvement(box, dimension):
    """Against a dense grid of the box."""
    task = box.task("gaussian_process", f"dimension={dimension}")
    options = box.controls(task).options
    proposer = make_proposer("gp_true", options, task, dimension, ("proposer",))
    state, best = task.begin(single(task, "test", 0)), torch.inf
    for step in range(4):
        point = proposer.ask(state)
        assert 0 <= point.min() <= point.max() <= 1
        if step:
            axes = [torch.linspace(0, 1, 401 if dimension == 1 else 81, dtype=torch.float64)] * dimension
            grid = torch.cartesian_prod(*axes).view(1, -1, dimension)
            mean, deviation = task.predict(state, torch.cat([grid, point.unsqueeze(0)], 1))
            found = expected_improvement(mean, deviation, torch.as_tensor(best))[0]
            assert found[-1] >= 0.999 * found[:-1].max()
        value, state = task.query(state, point)
        proposer.tell(value.item())
        best = min(best, value.item())


@pytest.mark.slow
def test_the_true_prior_beats_random_search(box):
    task = box.task("gaussian_process")
    method = box.controls(task, "optimizers=[random,gp_true]", "horizon=15", "test_functions=12", steps=12)
    for index in range(12):
        method.step(index)
    told = method.evaluate("test")
    assert method.winner() == "gp_true"
    assert told["test/best_value/gp_true"] < told["test/best_value/random"] - 0.2
    assert told["test/best_value"] == told["test/best_value/gp_true"]


def test_resume(box, tmp_path):
    whole, first, second = (box.controls(box.task()) for _ in range(3))
    for index in range(6):
        whole.step(index)
    for index in range(2):
        first.step(index)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert second.evaluate("test") == first.evaluate("test")
    for index in range(2, 6):
        second.step(index)
    assert torch.equal(second.values, whole.values)
    assert second.evaluate("test") == whole.evaluate("test")


def test_artifacts(box, tmp_path):
    method = box.controls(box.task())
    assert method.evaluate("test") == {}
    assert method.evaluate("valid") == {}
    method.artifacts(tmp_path)
    assert not list(tmp_path.iterdir())
    for index in range(6):
        method.step(index)
    method.artifacts(tmp_path)
    curves = json.loads((tmp_path / "trajectories.json").read_text())
    assert curves["series"]["random search"][-1] == pytest.approx(method.values.amin(1).mean().item())
    assert curves["functions"] == {"random search": 6}
    assert json.loads((tmp_path / "summary.json").read_text())["seconds_per_100_queries"]["random"] > 0


def test_mistakes_are_explained(box):
    with pytest.raises(UserError, match=r"train.steps: got 5, must be 6, .* set train.steps=6"):
        box.controls(box.task(), steps=5)
    with pytest.raises(UserError, match=r"got gp_true, .* functions of task branin"):
        box.controls(box.task("branin"), "optimizers=[gp_true]")
    with pytest.raises(UserError, match=r"method.optimizers: got \[\], must be different ones"):
        box.controls(box.task(), "optimizers=[]")


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [1, 2, 3, 6])
def test_recipes_agree(dimension):
    """A network and its controls are recipes of their own: their functions must be the same ones."""
    register_all()
    place = f"recipe=learned_optimizers/black_box/gp_{dimension}d"
    ours, theirs = compose([place]), compose([f"{place}_controls"])
    assert ours.task == theirs.task
    assert ours.task.dimension == dimension
    assert ours.method.horizon == theirs.method.horizon
    assert theirs.role == "control"
