"""One few-shot task: hypergradients against central differences, each algorithm against its definition."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import metalearn.hypergradient  # noqa: F401  (registers the names)
from metalearn import registry
from metalearn.config import MachineOptions
from metalearn.hypergradient.base import Segment
from metalearn.hypergradient.config import UnrolledOptions
from metalearn.machine import Machine
from metalearn.maml.config import MamlOptions
from metalearn.maml.problem import FewShot
from metalearn.network import Network, Output
from metalearn.networks import Mlp
from metalearn.options import MlpOptions
from metalearn.registry import UserError
from metalearn.rng import generator
from metalearn.task import Batch, Task, TaskSpec
from metalearn.tree import add, tree_map

MACHINE = MachineOptions(
    "cpu", "cpu", "fp32", compile=False, fused=True, deterministic=False, threads=1, timeout=60.0
)
SIDE, STEPS = 1e-4, 3


class Regression(Task):
    """Mean squared error on data that the tests make."""

    spec = TaskSpec("made", "few_shot", (2,), 1, {}, "loss", "", "", "", "", support=5)

    def loss(self, output, batch):
        return F.mse_loss(output, batch.y)

    def metrics(self, output, batch):
        return {"loss": self.loss(output, batch).detach()}

    batch = batches = sweep = None  # type: ignore[assignment]


def problem_of(algorithm, network=None):
    if network is None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network = Mlp(MlpOptions("mlp", [4, 3], "tanh", None), Regression.spec).double()
    options = MamlOptions("maml", algorithm, inner_learning_rate=0.3, proximal=1.5)
    return FewShot(Regression(), network, Machine(MACHINE), options)


def examples(name, count=5):
    x = torch.randn(count, 2, generator=generator(name), dtype=torch.float64)
    return Batch(x, (2 * x).sin().sum(-1, keepdim=True), (name,))


def estimate(problem, meta, support, query, steps=STEPS):
    estimator = registry.build("hypergradient", UnrolledOptions("unrolled", recompute=False))
    carry = estimator.init(problem, meta, generator(0))
    return estimator.estimate(problem, meta, carry, Segment([support] * steps, {steps: query}), generator(0))


def weights_of(network, flat):
    """The network with other parameters, for answers that use no functional call."""
    other = copy.deepcopy(network)
    nn.utils.vector_to_parameters(flat, other.parameters())
    return other


@pytest.mark.parametrize("algorithm", ["maml", "anil", "meta_sgd"])
def test_hypergradient_agrees_with_central_differences(algorithm):
    """The query loss of a copy of the module whose parameters are moved in place, by values alone."""
    problem, support, query = problem_of(algorithm), examples("support"), examples("query", 7)
    meta = tree_map(
        lambda leaf: leaf + 0.1 * torch.rand(leaf.shape, generator=generator(leaf.numel()), dtype=leaf.dtype),
        problem.start(problem.network),
    )

    def played(meta):
        network = copy.deepcopy(problem.network)
        parameters = dict(network.named_parameters())
        with torch.no_grad():
            for name, leaf in parameters.items():
                leaf.copy_(meta[f"init/{name}"])
        moving = [name for name in parameters if algorithm != "anil" or name.startswith("layers.5.")]
        for _ in range(STEPS):
            loss = F.mse_loss(network(support.x).logits, support.y)
            grads = torch.autograd.grad(loss, [parameters[name] for name in moving])
            with torch.no_grad():
                for name, grad in zip(moving, grads, strict=True):
                    parameters[name] -= meta.get(f"rate/{name}", 0.3) * grad
        return F.mse_loss(network(query.x).logits, query.y).detach()

    found = estimate(problem, meta, support, query)

    torch.testing.assert_close(found.loss, played(meta), rtol=1e-12, atol=0)
    assert any(key.startswith("rate/") for key in meta) == (algorithm == "meta_sgd")
    for key, leaf in meta.items():
        for index in range(leaf.numel()):
            sides = []
            for side in (SIDE, -SIDE):
                moved = {name: value.clone() for name, value in meta.items()}
                moved[key].view(-1)[index] += side
                sides.append(played(moved))
            expected = (sides[0] - sides[1]) / (2 * SIDE)
            torch.testing.assert_close(found.grad[key].view(-1)[index], expected, rtol=1e-5, atol=1e-8)


def test_first_order_is_the_gradient_at_the_adapted_weights():
    problem, support, query = problem_of("fomaml"), examples("support"), examples("query")
    meta = problem.start(problem.network)

    found = estimate(problem, meta, support, query)

    adapted = add({name: meta[f"init/{name}"] for name in problem.adapted}, found.carry.params)
    network = weights_of(problem.network, nn.utils.parameters_to_vector(adapted.values()))
    grads = torch.autograd.grad(F.mse_loss(network(query.x).logits, query.y), list(network.parameters()))
    for (key, leaf), grad in zip(found.grad.items(), grads, strict=True):
        torch.testing.assert_close(leaf, grad, rtol=1e-12, atol=1e-14, msg=key)
    exact = estimate(problem_of("maml"), meta, support, query)
    assert not torch.allclose(
        found.grad["init/layers.1.weight"], exact.grad["init/layers.1.weight"], rtol=0.01
    )


def test_imaml_keeps_the_inner_run_near_and_judges_without_the_penalty():
    problem, plain, batch = problem_of("imaml"), problem_of("maml"), examples("support")
    meta = problem.start(problem.network)
    params = {name: torch.full_like(leaf, 0.1) for name, leaf in problem.init(meta).params.items()}
    count = sum(leaf.numel() for leaf in params.values())

    loss = plain.inner_loss(meta, params, batch)

    expected = loss + 1.5 / 2 * 0.01 * count
    torch.testing.assert_close(problem.inner_loss(meta, params, batch), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(problem.outer_loss(meta, params, batch), loss, rtol=0, atol=0)


def test_starts_at_the_networks_own_weights():
    problem, batch = problem_of("meta_sgd"), examples("support")
    meta = problem.start(problem.network)

    output = problem.score(meta, problem.init(meta).params, batch)

    torch.testing.assert_close(output, problem.network(batch.x).logits, rtol=0, atol=0)
    assert all((leaf == 0.3).all() for key, leaf in meta.items() if key.startswith("rate/"))
    assert not any(leaf.requires_grad for leaf in meta.values())


def test_anil_moves_the_last_linear_map_alone():
    problem = problem_of("anil")
    assert list(problem.init(problem.start(problem.network)).params) == ["layers.5.weight", "layers.5.bias"]


class Noisy(Network):
    """Dropout between two maps, and batch normalisation with running statistics."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, x, state=None):  # noqa: ARG002
        return Output(self.layers(x))


def test_one_batch_draws_the_same_masks_and_uses_its_own_statistics():
    problem, batch = problem_of("maml", Noisy().double().eval()), examples("support")
    meta = problem.start(problem.network)
    params = problem.init(meta).params

    first, again = problem.score(meta, params, batch), problem.score(meta, params, batch)
    other = problem.score(meta, params, batch._replace(key=("other",)))

    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert not torch.allclose(other, first)


class Tied(Network):
    """One parameter in two maps."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)
        self.last.weight = self.first.weight

    def forward(self, x, state=None):  # noqa: ARG002
        return Output(self.last(self.first(x).tanh()))


def test_a_shared_parameter_moves_in_both_places():
    problem, batch = problem_of("maml", Tied().double()), examples("support")
    meta = problem.start(problem.network)
    params = {name: torch.full_like(leaf, 0.5) for name, leaf in problem.init(meta).params.items()}

    output = problem.score(meta, params, batch)

    moved = weights_of(problem.network, nn.utils.parameters_to_vector(problem.weights(meta, params).values()))
    torch.testing.assert_close(output, moved(batch.x).logits, rtol=1e-12, atol=0)


class Scale(Network):
    """No linear map."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x, state=None):  # noqa: ARG002
        return Output(x * self.scale)


class Twice(Network):
    """One module under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.second = self.first

    def forward(self, x, state=None):  # noqa: ARG002
        return Output(self.second(self.first(x)))


@pytest.mark.parametrize(
    ("network", "words"), [(Scale, "adapts the last linear map; Scale has none"), (Twice, "registered twice")]
)
def test_refuses(network, words):
    with pytest.raises(UserError, match=words):
        problem_of("anil", network())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
def test_equals_learn2learn(algorithm):
    l2l = pytest.importorskip("learn2learn")
    problem, support, query = problem_of(algorithm), examples("support"), examples("query")
    network = problem.network.layers
    meta_learner = l2l.algorithms.MAML(copy.deepcopy(network), lr=0.3, first_order=algorithm == "fomaml")
    learner = meta_learner.clone()
    for _ in range(STEPS):
        learner.adapt(F.mse_loss(learner(support.x), support.y))
    loss = F.mse_loss(learner(query.x), query.y)
    expected = torch.autograd.grad(loss, list(meta_learner.parameters()))

    found = estimate(problem, problem.start(problem.network), support, query)

    for (key, leaf), grad in zip(found.grad.items(), expected, strict=True):
        torch.testing.assert_close(leaf, grad, rtol=1e-9, atol=1e-12, msg=key)
