"""Supervised training and the plain networks."""

import copy
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.datasets import make_moons
from torch import nn
from torch.nn import functional as F

import metalearn.options  # noqa: F401
from metalearn.config import MachineOptions
from metalearn.machine import Machine
from metalearn.method import Context
from metalearn.network import Network, Output
from metalearn.networks import BatchShift, Convnet, Mlp, Point
from metalearn.options import ConvnetOptions, MlpOptions, PointOptions, SupervisedOptions
from metalearn.registry import UserError
from metalearn.rng import generator, seeded
from metalearn.supervised import Supervised
from metalearn.task import Batch, Task, TaskSpec
from metalearn.tree import count


def make_spec(kind, shape, outputs):
    return TaskSpec("here", kind, shape, outputs, {}, "loss", "", "", "", "")


class Moons(Task):
    """400 points of two half circles; the sweep ends in a short batch."""

    def __init__(self):
        points, labels = make_moons(400, noise=0.1, random_state=0)
        self.x = torch.tensor(np.array(points), dtype=torch.float32)
        self.y = torch.tensor(labels)
        self.spec = make_spec("classification", (2,), 2)

    def batches(self, split):  # noqa: ARG002
        return 10

    def batch(self, split, index):
        rows = torch.randint(400, (40,), generator=generator("moons", split, index))
        return Batch(self.x[rows], self.y[rows], ("moons", split, index))

    def sweep(self, split):
        for at in range(0, 400, 150):
            yield Batch(self.x[at : at + 150], self.y[at : at + 150], ("moons", split, at))

    def loss(self, output, batch):
        return F.cross_entropy(output.flatten(0, -2), batch.y.flatten())

    def metrics(self, output, batch):
        return {"loss": self.loss(output, batch)}


class Rows(Moons):
    """Two rows of symbols, four a batch, three batches a pass."""

    def __init__(self):
        self.text = torch.randint(5, (2, 13), generator=generator("text"))
        self.spec = make_spec("language_model", (), 5)

    def batches(self, split):  # noqa: ARG002
        return 3

    def batch(self, split, index):
        at = 4 * (index % 3)
        return Batch(self.text[:, at : at + 4], self.text[:, at + 1 : at + 5], ("rows", split, index))

    def sweep(self, split):
        yield Batch(self.text[:, :8], self.text[:, 1:9], ("sweep", split, 0))
        yield Batch(self.text[:, 8:12], self.text[:, 9:], ("sweep", split, 1))


class Sum(Network):
    """Recurrent: h_t = tanh(h_(t-1) + embedding); dropout, and an auxiliary head tied to the first."""

    def __init__(self, spec):
        super().__init__()
        self.embedding = nn.Embedding(spec.outputs, 3)
        self.head = nn.Linear(3, spec.outputs)
        self.auxiliary_head = self.head
        self.seen = []

    def forward(self, x, state=None):
        hidden = torch.zeros(x.shape[0], 3) if state is None else state["h"]
        self.seen.append((state is not None, hidden, self.progress))
        outputs = []
        for time in range(x.shape[1]):
            hidden = torch.tanh(hidden + self.embedding(x[:, time]))
            outputs.append(F.dropout(hidden, 0.2, self.training))
        features = torch.stack(outputs, 1)
        return Output(self.head(features), {"h": hidden}, 3 * self.head(features) if self.training else None)


def make_options(**changes):
    options = {
        "name": "supervised",
        "optimizer": "adam",
        "learning_rate": 0.03,
        "nominal_time": None,
        "momentum": 0.9,
        "nesterov": False,
        "patience": 5,
        "betas": [0.9, 0.999],
        "weight_decay": 0.0,
        "weight_decay_of": "all",
        "clip": None,
        "schedule": "none",
        "schedule_every": "step",
        "final_learning_rate": 0.0,
        "decay": 1.0,
        "milestones": [],
        "rates": [],
        "label_smoothing": 0.0,
        "auxiliary_weight": 0.0,
        "carry": True,
    }
    return SupervisedOptions(**(options | changes))


def make_method(task, build, steps=60, precision="fp32", compile=False, **changes):
    machine = Machine(MachineOptions("cpu", "cpu", precision, compile, True, False, 0, 60))

    def network():
        with seeded(0, "network"):
            return build(task.spec)

    return Supervised(make_options(**changes), Context(task, network, None, machine, 0, steps))


def make_mlp(spec):
    return Mlp(MlpOptions("mlp", [16], "tanh", None), spec)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam"},
        {"optimizer": "adamw", "weight_decay": 0.01, "schedule": "cosine"},
        {"optimizer": "sgd", "learning_rate": 0.3, "clip": 1.0, "schedule": "cosine"},
    ],
)
def test_loss_falls_on_two_moons(changes):
    method = make_method(Moons(), make_mlp, **changes)
    before = method.evaluate("valid")["valid/loss"]
    for index in range(60):
        metrics = method.step(index)
    assert before > 0.5
    assert method.evaluate("valid")["valid/loss"] < 0.3
    assert not metrics["train/loss"].requires_grad


def test_evaluation_weighs_batches_by_their_targets():
    method = make_method(Moons(), make_mlp)
    task = method.task
    expected = F.cross_entropy(method.network(task.x).logits, task.y)
    torch.testing.assert_close(method.evaluate("valid")["valid/loss"], expected.detach())


def test_state_is_carried_and_reset_at_each_pass():
    method = make_method(Rows(), Sum)
    for index in range(5):
        method.step(index)
    carried = [had for had, _, _ in method.network.seen]
    assert carried == [False, True, True, False, True]
    assert not method.network.seen[1][1].requires_grad, "truncated: no gradient through the carried state"
    assert [progress for _, _, progress in method.network.seen] == [index / 60 for index in range(5)]


def test_evaluation_reads_the_split_as_one_text():
    method = make_method(Rows(), Sum)
    for index in range(2):
        method.step(index)
    hidden = method.hidden["h"].clone()
    found = method.evaluate("valid")["valid/loss"]
    method.network.eval()
    text = method.task.text
    expected = F.cross_entropy(method.network(text[:, :12]).logits.flatten(0, 1), text[:, 1:].flatten())
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(method.hidden["h"], hidden)


class Noise(Mlp):
    """A perceptron of inputs and noise, after training too."""

    def forward(self, x, state=None):
        return super().forward(x + torch.randn_like(x), state)


def test_what_an_evaluation_draws_is_its_own():
    """The same at each call, and training does not notice."""
    method = make_method(Moons(), lambda spec: Noise(MlpOptions("mlp", [16], "tanh", None), spec))
    first, state = method.evaluate("valid"), torch.get_rng_state()
    torch.testing.assert_close(method.evaluate("valid"), first, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_autocast_scores_in_full_precision():
    rough, exact = (make_method(Rows(), Sum, precision=precision) for precision in ("bf16", "fp32"))
    for index in range(2):
        found, expected = (method.step(index)["train/loss"] for method in (rough, exact))
        assert found.dtype == torch.float32
        assert 0 < abs(found - expected) < 0.02 * expected
    found, expected = (method.evaluate("valid")["valid/loss"] for method in (rough, exact))
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_resume_is_bit_exact(optimizer, tmp_path):
    changes = {"optimizer": optimizer, "schedule": "cosine", "clip": 1.0, "auxiliary_weight": 0.4}
    unbroken, first, second = (make_method(Rows(), Sum, **changes) for _ in range(3))
    expected = [unbroken.step(index) for index in range(6)]
    for index in range(4):
        first.step(index)
    first.evaluate("valid")
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for index in (4, 5):
        assert torch.equal(second.step(index)["train/loss"], expected[index]["train/loss"])
    for name, value in unbroken.network.state_dict().items():
        assert torch.equal(second.network.state_dict()[name], value), name


def test_a_step_is_the_optimizers_own():
    """SGD with momentum, weight decay, clipping and an auxiliary head, written out."""
    changes = {"optimizer": "sgd", "weight_decay": 0.1, "clip": 0.5, "auxiliary_weight": 0.4}
    method = make_method(Rows(), Sum, **changes)
    network = copy.deepcopy(method.network)
    batch = method.task.batch("train", 0)
    with seeded(*batch.key):
        output = network(batch.x)
    loss = method.task.loss(output.logits, batch) + 0.4 * method.task.loss(output.auxiliary, batch)
    parameters = list(network.parameters())
    grads = torch.autograd.grad(loss, parameters)
    length = torch.stack([grad.square().sum() for grad in grads]).sum().sqrt()
    assert length > 0.5
    method.step(0)
    for old, new, grad in zip(parameters, method.network.parameters(), grads, strict=True):
        expected = old - 0.03 * (0.5 / length * grad + 0.1 * old)
        torch.testing.assert_close(new, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("every", "rates"),
    [("step", [1.0, 0.933, 0.75, 0.5, 0.25, 0.067]), ("epoch", [1.0, 1.0, 1.0, 0.5, 0.5, 0.5])],
)
def test_cosine_schedule(every, rates):
    method = make_method(
        Rows(),
        Sum,
        steps=6,
        schedule="cosine",
        schedule_every=every,
        learning_rate=1.1,
        final_learning_rate=0.1,
    )
    for index, rate in enumerate(rates):
        method.step(index)
        assert method.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 + rate, abs=1e-3)


@pytest.mark.parametrize(("every", "powers"), [("step", range(6)), ("epoch", [0, 0, 0, 1, 1, 1])])
def test_exponential_schedule(every, powers):
    """x 0.97 at each epoch: Liu et al. 2019, appendix A.2.3."""
    changes = {"schedule": "exponential", "schedule_every": every, "learning_rate": 0.1, "decay": 0.97}
    method = make_method(Rows(), Sum, steps=6, **changes)
    for index, power in enumerate(powers):
        method.step(index)
        assert method.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.97**power)


def test_rates_step_at_milestones():
    """The first rate up to the first milestone, each later one from its own on (Ha et al. 2017, table 8)."""
    changes = {"schedule": "steps", "learning_rate": 0.1, "milestones": [2, 3], "rates": [0.02, 0.004]}
    method = make_method(Rows(), Sum, steps=6, **changes)
    for index, rate in enumerate([0.1, 0.1, 0.02, 0.004, 0.004, 0.004]):
        method.step(index)
        assert method.optimizer.param_groups[0]["lr"] == rate


def test_milestones_may_count_epochs():
    changes = {"schedule": "steps", "schedule_every": "epoch", "milestones": [1], "rates": [0.5]}
    method = make_method(Rows(), Sum, steps=6, learning_rate=1.0, **changes)
    seen = []
    for index in range(6):
        method.step(index)
        seen.append(method.optimizer.param_groups[0]["lr"])
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5]  # an epoch has three batches


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "steps"}, "milestones"),
        ({"schedule": "steps", "milestones": [2, 3], "rates": [0.1]}, "a rate for each milestone"),
        ({"schedule": "steps", "milestones": [3, 3], "rates": [0.1, 0.2]}, "rise"),
        ({"milestones": [3], "rates": [0.1]}, "heeds neither"),
        ({"optimizer": "sgd", "momentum": 0.0, "nesterov": True}, "momentum"),
        ({"optimizer": "adam", "nesterov": True}, "sgd"),
    ],
)
def test_refuses_schedules_and_momenta_that_make_no_sense(changes, words):
    with pytest.raises(UserError, match=words):
        make_method(Rows(), Sum, **changes)


class Shifted(Network):
    """A kernel and a bias that the loss does not reach."""

    def __init__(self, spec):
        super().__init__()
        self.layer = nn.Linear(*spec.input_shape, spec.outputs)

    def forward(self, x, state=None):  # noqa: ARG002
        return Output(0 * self.layer(x))


@pytest.mark.parametrize(("of", "decayed"), [("all", True), ("kernels", False)])
def test_weight_decay_of_kernels_spares_the_biases(of, decayed):
    changes = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.5, "weight_decay_of": of}
    method = make_method(Moons(), Shifted, **changes)
    layer = copy.deepcopy(method.network.layer)
    method.step(0)
    torch.testing.assert_close(method.network.layer.weight, 0.95 * layer.weight)
    torch.testing.assert_close(method.network.layer.bias, (0.95 if decayed else 1.0) * layer.bias)


def test_nesterov_momentum():
    """Two steps by hand: the second moves by the gradient and 0.9 of the memory that holds it already."""
    changes = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "nesterov": True}
    method = make_method(Moons(), TwoHeads, **changes)
    leaf, memory = method.network.first.weight, 0.0
    for index in range(2):
        before = leaf.detach().clone()
        method.step(index)
        assert leaf.grad is not None
        memory = 0.9 * memory + leaf.grad
        torch.testing.assert_close(leaf.detach(), before - 0.1 * (leaf.grad + 0.9 * memory))


class TwoHeads(Network):
    """A linear classifier with an auxiliary head and a penalty, in training only."""

    def __init__(self, spec):
        super().__init__()
        self.first, self.second = (nn.Linear(*spec.input_shape, spec.outputs) for _ in range(2))

    def forward(self, x, state=None):  # noqa: ARG002
        logits = self.first(x)
        if not self.training:
            return Output(logits)
        return Output(logits, {}, self.second(x), self.first.weight.square().sum())


def test_training_descends_smoothed_labels_of_both_heads_and_the_penalty():
    """Against cross-entropy with targets written out: 1 - 0.1 on the label, 0.1 spread over the classes."""
    changes = {"label_smoothing": 0.1, "auxiliary_weight": 0.4, "optimizer": "sgd", "learning_rate": 0.5}
    method = make_method(Moons(), TwoHeads, **changes)
    network, batch = copy.deepcopy(method.network).train(), method.task.batch("train", 0)
    targets = 0.9 * F.one_hot(batch.y, 2) + 0.1 / 2
    output = network(batch.x)

    def smoothed(logits):
        return -(targets * logits.log_softmax(1)).sum(1).mean()

    expected = smoothed(output.logits) + 0.4 * smoothed(output.auxiliary) + output.penalty
    grads = torch.autograd.grad(expected, list(network.parameters()))
    metrics = method.step(0)
    torch.testing.assert_close(metrics["train/loss"], method.task.loss(output.logits, batch).detach())
    for old, new, grad in zip(network.parameters(), method.network.parameters(), grads, strict=True):
        torch.testing.assert_close(new, old - 0.5 * grad)


def test_only_labels_are_smoothed():
    with pytest.raises(UserError, match=r"label_smoothing: got 0\.1 with task here, a language_model"):
        make_method(Rows(), Sum, label_smoothing=0.1)


def test_the_rate_is_in_proportion_to_the_length():
    """Half of the nominal length, half of the rate (Liu et al. 2019, rnn/train.py), also of a schedule's."""
    changes = {"nominal_time": 8, "optimizer": "sgd", "learning_rate": 0.6, "momentum": 0.0}
    plain = make_method(Rows(), Sum, **changes | {"nominal_time": None, "learning_rate": 0.3})
    ours = make_method(Rows(), Sum, **changes)
    for index in range(2):
        assert torch.equal(plain.step(index)["train/loss"], ours.step(index)["train/loss"])
    assert torch.equal(plain.network.head.weight, ours.network.head.weight)
    decayed = make_method(Rows(), Sum, schedule="exponential", decay=0.5, **changes)
    for index, rate in enumerate([0.3, 0.15, 0.075]):
        decayed.step(index)
        assert decayed.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    with pytest.raises(UserError, match="nominal_time: got 8 with task here, a classification; only texts"):
        make_method(Moons(), make_mlp, nominal_time=8)


class Found:
    def to_json(self):
        return '{"found": 1}'


def test_a_genotype_and_the_multiply_adds_are_written(tmp_path):
    method = make_method(Moons(), make_mlp)
    method.artifacts(tmp_path)
    assert not (tmp_path / "genotype.json").exists()
    matrices = [leaf for leaf in method.network.parameters() if leaf.dim() == 2]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["multiply_adds"] == sum(leaf.numel() for leaf in matrices)
    method.network.genotype = Found()
    method.artifacts(tmp_path)
    assert (tmp_path / "genotype.json").read_text() == '{"found": 1}'


def test_artifacts(tmp_path):
    method = make_method(Rows(), Sum)
    method.artifacts(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["parameters"] == 15 + 20
    assert summary["task"]["name"] == "here"
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert len(list(file.keys())) == 3, "the tied head is written once"
        torch.testing.assert_close(
            file.get_tensor("embedding.weight"), method.network.embedding.weight.detach()
        )


def test_refuses_what_it_would_not_use():
    context = make_method(Moons(), make_mlp)
    with pytest.raises(UserError, match="hypergradient=none"):
        Supervised(make_options(), Context(context.task, lambda: None, object(), context.machine, 0, 1))
    with pytest.raises(UserError, match="two numbers"):
        make_method(Moons(), make_mlp, betas=[0.9])


CONVNET = {"name": "convnet", "channels": [16, 16, 16], "kernel": 5, "hidden": [32], "batch_norm": True}


def test_parameter_counts():
    """MNIST perceptron of Andrychowicz et al.: 15,910; convnet for CIFAR-10 written out."""
    mnist = make_spec("classification", (1, 28, 28), 10)
    cifar = make_spec("classification", (3, 32, 32), 10)
    assert count(Mlp(MlpOptions("mlp", [20], "sigmoid", None), mnist).parameters()) == 15910
    network = Convnet(ConvnetOptions(**CONVNET, deviation=0.01), cifar)
    weights = [module.weight for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert count(weights) == 14_000  # papers/l2l.md, section 4.3: the "conv" and the "fc" net's coordinates
    assert count(network.parameters()) - count(weights) == 8_682


def test_batch_shift_is_batch_normalisation_without_a_scale():
    x = torch.randn(6, 3, 4, 4, dtype=torch.float64, generator=generator("x"))
    ours, theirs = BatchShift(3).double(), torch.nn.BatchNorm2d(3).double()
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    ours.shift.data, theirs.bias.data = shift, shift
    torch.testing.assert_close(ours(x), theirs(x))
    assert torch.autograd.gradgradcheck(ours, (x[:, :, :2, :2].clone().requires_grad_(),))


def test_the_auxiliary_head_is_counted_apart(tmp_path):
    method = make_method(Moons(), make_mlp)
    before = count(method.network.parameters())
    method.network.auxiliary = torch.nn.Linear(4, 5)
    method.artifacts(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["parameters"], summary["auxiliary_parameters"]) == (before, 25)


def test_drop_path_is_not_compiled():
    def network(spec):
        built = make_mlp(spec)
        built.drop_path = 0.2
        return built

    with pytest.raises(UserError, match=r"network\.drop_path=0\.2, which would be compiled anew"):
        make_method(Moons(), network, compile=True)


def test_convnet_is_a_function_of_its_batch_alone():
    with seeded("convnet"):
        network = Convnet(
            ConvnetOptions(**CONVNET, deviation=0.01), make_spec("classification", (1, 8, 8), 10)
        )
    assert not list(network.buffers())
    x = torch.randn(7, 1, 8, 8, generator=generator("x"))
    first = network(x).logits
    torch.testing.assert_close(network.eval()(x).logits, first)
    assert network.layers[0].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert first.shape == (7, 10)


@pytest.mark.parametrize(("shape", "outputs"), [((1,), 1), ((1, 28, 28), 5)])
def test_mlp_scores_one_part_of_one_few_shot_task(shape, outputs):
    network = make_mlp(make_spec("few_shot", shape, outputs))
    assert network(torch.zeros(7, *shape)).logits.shape == (7, outputs)


def test_supervised_refuses_tasks_to_adapt_to():
    class Episodes(Moons):
        def __init__(self):
            super().__init__()
            self.spec = make_spec("few_shot", (2,), 2)

    with pytest.raises(UserError, match=r"is a few_shot; choose method=maml .*inner_steps=0.* or a task"):
        make_method(Episodes(), make_mlp)


def test_point():
    spec = make_spec("function", (3,), 10)
    network = Point(PointOptions("point", 0.01), spec)
    logits = network(torch.zeros(4, 3)).logits
    assert logits.shape == (4, 10)
    assert torch.equal(logits[0], logits[3])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make_mlp(make_spec("function", (3,), 10)), "classification or few_shot task"),
        (lambda: Point(PointOptions("point", 0.1), make_spec("classification", (3,), 2)), "function task"),
        (
            lambda: Convnet(
                ConvnetOptions(**CONVNET, deviation=None), make_spec("classification", (1, 4, 4), 2)
            ),
            "at least 8 pixels",
        ),
        (
            lambda: Convnet(ConvnetOptions(**CONVNET, deviation=None), make_spec("classification", (4,), 2)),
            "choose network=mlp",
        ),
    ],
)
def test_networks_refuse_tasks_that_do_not_fit(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_options_of_conf_are_complete():
    """conf/ gives every field, and no other."""
    from omegaconf import OmegaConf

    from metalearn.compose import CONF
    from metalearn.registry import fields

    for group, name in [
        ("method", "supervised"),
        ("network", "mlp"),
        ("network", "convnet"),
        ("network", "point"),
    ]:
        assert list(OmegaConf.load(CONF / group / f"{name}.yaml")) == fields(group, name)
    assert list(asdict(make_options())) == fields("method", "supervised")
