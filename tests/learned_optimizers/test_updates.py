"""What is shown of an optimizer's updates: gradient descent is a line, and only the last gradient varies."""

import json
from xml.etree import ElementTree

import pytest
import torch

from metalearn.learned_optimizers.config import UpdatesOptions
from metalearn.learned_optimizers.layout import Layout
from metalearn.learned_optimizers.rules import UpdateRule
from metalearn.learned_optimizers.updates import LEARNED, measure, write_updates
from metalearn.problem import Inner

OPTIONS = UpdatesOptions(
    steps=5, points=9, reach=4.0, adam_learning_rate=0.1, sgd_learning_rate=0.03, betas=[0.9, 0.999],
    epsilon=1e-8,
)  # fmt: skip
D = torch.float64


class Remembering(UpdateRule):
    """Moves by minus the sum of its tensor's mean gradient, of its own, and of all it has seen."""

    options = None

    def init(self, rng):  # noqa: ARG002
        return {}

    def slots(self, theta, layout: Layout):  # noqa: ARG002
        return {"seen": torch.zeros_like(theta), "steps": theta.new_zeros(len(theta))}

    def update(self, meta, inner, grads, layout):
        grad, seen, steps = grads["theta"], inner.slots["seen"], inner.slots["steps"]
        move = layout.spread(layout.means(grad)) + grad + seen + steps[:, None]
        move = meta["rate"] * move
        return Inner({"theta": inner.params["theta"] - move}, {"seen": seen + grad, "steps": steps + 1})


@pytest.fixture
def found(kit, float64):  # noqa: ARG001
    task = kit.Quadratics(functions=2, dimension=3)
    optimizee = kit.optimizee(kit.learned(), kit.context(task))
    return measure(Remembering(), {"rate": torch.tensor(0.01)}, optimizee, OPTIONS), optimizee


def test_gradient_descent_is_a_line(found):
    shown, _ = found
    for step in range(5):
        line = -0.03 * torch.tensor(shown.varied, dtype=D)
        torch.testing.assert_close(torch.tensor(shown.proposed["SGD"][step], dtype=D), line)
    for grads, moves in zip(shown.gradients, shown.updates["SGD"], strict=True):
        torch.testing.assert_close(torch.tensor(moves, dtype=D), -0.03 * torch.tensor(grads, dtype=D))


def test_history_is_fixed_and_only_one_gradient_varies(found):
    """The rule's own formula: a line of slope -rate (1 + 1/3), lifted by what it has seen so far."""
    shown, _ = found
    varied, moves = torch.tensor(shown.varied, dtype=D), torch.tensor(shown.proposed[LEARNED], dtype=D)
    assert (varied[0], varied[-1]) == (-4, 4)
    torch.testing.assert_close(moves - moves[:, 4:5], (-0.01 * 4 / 3 * varied).expand(5, 9))
    history = torch.tensor(shown.gradients[0], dtype=D).cumsum(0)
    own = torch.tensor(shown.updates[LEARNED][0], dtype=D)
    before = torch.cat([torch.zeros(1, dtype=D), history[:-1]])
    grads = torch.tensor(shown.gradients[0], dtype=D)
    lifted = moves[:, 4] + 0.01 * (before + torch.arange(5, dtype=D))  # what the others' gradients add
    torch.testing.assert_close(own, lifted - 0.01 * (before + torch.arange(5, dtype=D) + grads * 4 / 3))


def test_adam_agrees_with_torch_along_the_run(found):
    """Its memory is of the gradients of the trained optimizer's run."""
    shown, _ = found
    for grads, moves in zip(shown.gradients, shown.updates["ADAM"], strict=True):
        point = torch.zeros((), dtype=D, requires_grad=True)
        optimizer, before = torch.optim.Adam([point], 0.1, betas=(0.9, 0.999), eps=1e-8), 0.0
        for grad, move in zip(grads, moves, strict=True):
            point.grad = torch.tensor(grad, dtype=D)
            optimizer.step()
            assert point.item() - before == pytest.approx(move, rel=1e-6)
            before = point.item()


def test_the_run_is_the_trained_optimizers_own(found):
    """Replayed by hand: its gradients are those at its own points, of the first function of the batch."""
    shown, optimizee = found
    start = optimizee.start("valid", (0,))
    batch = optimizee.batches("valid", (0,), 0, 1)[0]
    rule, meta = Remembering(), {"rate": torch.tensor(0.01, dtype=D)}
    inner = Inner({"theta": start}, rule.slots(start, optimizee.layout))
    seen = []
    for _ in range(5):
        _, grads = optimizee.losses_and_gradients(inner.params["theta"], batch)
        seen.append(grads[0])
        inner = rule.update(meta, inner, {"theta": grads}, optimizee.layout)
    largest = int(torch.stack(seen).abs().mean(0).argmax())
    assert shown.coordinates[0] == f"theta[{largest}]"
    torch.testing.assert_close(
        torch.tensor(shown.gradients[0], dtype=D), torch.stack(seen)[:, largest], rtol=1e-6, atol=0
    )


@pytest.mark.slow  # draws
def test_a_network_on_minibatches_is_shown_too(kit, tmp_path):
    """By the LSTM; the reach is then the largest gradient of the run; no more steps than a run has."""
    options = UpdatesOptions(**{**vars(OPTIONS), "reach": None, "steps": 32})
    learner = kit.learner(kit.Blobs(), updates=options)
    learner.artifacts(tmp_path)
    record = json.loads((tmp_path / "updates.json").read_text())
    assert len(record["coordinates"]) == 2
    assert [len(record["updates"][name][0]) for name in (LEARNED, "ADAM", "SGD")] == [6, 6, 6]
    assert record["varied"][-1] == pytest.approx(max(map(abs, record["gradients"][0])))
    assert len(record["proposed"][LEARNED]) == 6
    root = ElementTree.fromstring((tmp_path / "updates.svg").read_text())
    words = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {LEARNED, "ADAM", "SGD", "step 6", "proposed update"} <= words
    again = (tmp_path / "updates.svg").read_bytes()
    write_updates(tmp_path, learner.rule, learner.meta, learner.family.optimizee, options)
    assert (tmp_path / "updates.svg").read_bytes() == again
