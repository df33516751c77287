"""NT-ASGD: the trigger, torch's averages, and what is evaluated, kept and written."""

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F

import metalearn.options  # noqa: F401
import tasks  # noqa: F401
from metalearn.averaging import Averaging
from metalearn.compose import compose
from metalearn.config import MachineOptions
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.network import Network, Output
from metalearn.rng import generator, seeded
from metalearn.supervised import Supervised
from metalearn.task import Batch, Task, TaskSpec

EPOCH = 3  # batches


class Line(Task):
    """Scalars y = 2 x with noise; the validation loss of each epoch is told by the test."""

    def __init__(self, losses=None):
        self.losses, self.sweeps = losses, 0
        self.spec = TaskSpec("line", "language_model", (), 1, {}, "loss", "", "", "", "")

    def batches(self, split):  # noqa: ARG002
        return EPOCH

    def batch(self, split, index):
        rng = generator("line", split, index)
        x = torch.randn(8, 2, generator=rng)
        return Batch(x, 2 * x + torch.randn(8, 2, generator=rng), ("line", split, index))

    def sweep(self, split):
        yield self.batch(split, 10_000)

    def loss(self, output, batch):
        return F.mse_loss(output, batch.y)

    def metrics(self, output, batch):
        if self.losses is None or batch.key[1] != "valid":
            return {"loss": self.loss(output, batch)}
        self.sweeps += 1
        return {"loss": torch.tensor(self.losses[self.sweeps - 1])}


class Slope(Network):
    """y = a x + b, with dropout."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x, state=None):  # noqa: ARG002
        return Output(F.dropout(self.a * x + self.b, 0.3, self.training))


def make_method(task, patience=1, **changes):
    lines = {"optimizer": "nt_asgd", "learning_rate": 0.1, "weight_decay": 0.01, "momentum": 0.0}
    lines |= {"patience": patience, **changes}
    overrides = [f"method.{key}={value}" for key, value in lines.items()]
    options = compose(["method=supervised", *overrides]).method
    machine = Machine(MachineOptions("cpu", "cpu", "fp32", False, True, False, 0, 60))

    def network():
        with seeded(0, "network"):
            return Slope()

    return Supervised(options, Context(task, network, None, machine, 0, 60))


def weights(method):
    return [parameter.detach().clone() for parameter in method.network.parameters()]


BEGINS = [  # validation losses by epoch, patience, the epoch after which averaging begins
    ([5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.6], 5, 12),  # above epoch 6's
    ([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0], 5, 7),
    ([1.0, 2.0, 2.0, 2.0, 2.0, 2.0], 5, None),  # too few epochs
    ([3.0, 2.0, 3.0, 2.5], 1, 4),  # epoch 3 is held against the first alone, which it equals
    ([3.0, 2.9, 2.8, 2.7], 1, None),
]


@pytest.mark.parametrize(("losses", "patience", "after"), BEGINS)
def test_it_begins_when_a_loss_is_above_the_least_before_the_latest(losses, patience, after):
    averaging = Averaging([nn.Parameter(torch.zeros(2))], patience)
    begun = []
    for loss in losses:
        averaging.judge(loss)
        begun.append(averaging.begun)
    assert (begun.index(True) + 1 if any(begun) else None) == after


def test_steps_and_means_are_those_of_torch():
    """SGD for three epochs, then torch.optim.ASGD(t0=0, lambd=0) beside ours, on the same gradients."""
    task = Line([1.0, 2.0, 2.0])
    method = make_method(task)
    for index in range(3 * EPOCH):
        method.step(index)
    network = Slope()
    network.load_state_dict(method.network.state_dict())
    theirs = torch.optim.ASGD(network.parameters(), lr=0.1, lambd=0.0, t0=0, weight_decay=0.01)
    for index in range(3 * EPOCH, 7 * EPOCH):
        method.step(index)
        assert method.averaging.begun
        batch = task.batch("train", index)
        theirs.zero_grad()
        with seeded(*batch.key):
            task.loss(network.train()(batch.x).logits, batch).backward()
        theirs.step()
        with method.averaging.averaged():
            averages = weights(method)
        for place, parameter in enumerate(network.parameters()):
            torch.testing.assert_close(weights(method)[place], parameter.detach())
            torch.testing.assert_close(averages[place], theirs.state[parameter]["ax"])
    assert task.sweeps == 3, "validated once after each epoch, and no more once it has begun"
    assert (averages[0] - weights(method)[0]).abs() > 1e-3


def test_the_means_are_evaluated_and_written(tmp_path):
    task = Line()
    method = make_method(task)
    for loss in (1.0, 2.0, 2.0):
        method.averaging.judge(loss)
    for index in range(2 * EPOCH):
        method.step(index)
    raw, averages = weights(method), method.averaging.state_dict()["mean"]
    assert not torch.equal(raw[0], averages[0])
    batch = next(task.sweep("test"))
    expected = F.mse_loss(averages[0] * batch.x + averages[1], batch.y)
    torch.testing.assert_close(method.evaluate("test")["test/loss"], expected)
    method.artifacts(tmp_path)
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("a"), averages[0])
    assert all(torch.equal(*pair) for pair in zip(raw, weights(method), strict=True))


@pytest.mark.parametrize("cut", [2 * EPOCH, 3 * EPOCH, 3 * EPOCH + 1, 4 * EPOCH])
def test_resume_is_bit_exact(cut, tmp_path):
    """Before, at and after the beginning, which is at step 9."""
    told = [1.0, 2.0, 2.0]
    task = Line(told)
    unbroken, first = make_method(Line(told)), make_method(task)
    expected = [unbroken.step(index) for index in range(5 * EPOCH)]
    for index in range(cut):
        first.step(index)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_method(Line(told[task.sweeps :]))
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in range(cut, 5 * EPOCH):
        assert torch.equal(second.step(index)["train/loss"], expected[index]["train/loss"])
    assert second.averaging.begun
    assert all(torch.equal(*pair) for pair in zip(weights(unbroken), weights(second), strict=True))
    means = (method.averaging.state_dict()["mean"] for method in (unbroken, second))
    assert all(torch.equal(*pair) for pair in zip(*means, strict=True))


def test_without_the_trigger_it_is_sgd():
    ours, plain = make_method(Line([1.0, 0.9, 0.8])), make_method(Line(), optimizer="sgd")
    for index in range(4 * EPOCH):
        assert torch.equal(ours.step(index)["train/loss"], plain.step(index)["train/loss"])
    assert not ours.averaging.begun
    assert "averaging" not in plain.state_dict()
