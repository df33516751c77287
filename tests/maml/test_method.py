"""The method in the loop's hands: its gradients against independent answers, resume, evaluation, learning."""

import io
import json

import pytest
import torch
from safetensors.torch import load_file

from metalearn import cli
from metalearn.build import build
from metalearn.compose import compose
from metalearn.hypergradient.config import (
    EvolutionOptions,
    FiniteDifferenceOptions,
    FirstOrderOptions,
    ForwardOptions,
    NeumannOptions,
    PesOptions,
    TruncatedOptions,
    UnrolledOptions,
)
from metalearn.hypergradient.evolution import Evolution
from metalearn.hypergradient.finite_difference import FiniteDifference
from metalearn.hypergradient.first_order import FirstOrder
from metalearn.hypergradient.forward import Forward
from metalearn.hypergradient.neumann import Neumann
from metalearn.hypergradient.pes import Pes
from metalearn.hypergradient.unroll import Truncated, Unrolled
from metalearn.processes import Processes
from metalearn.registry import UserError
from metalearn.rng import generator

ALGORITHMS = ["maml", "fomaml", "anil", "meta_sgd", "reptile", "imaml"]
ESTIMATORS = {
    "recompute": Unrolled(UnrolledOptions("unrolled", recompute=True)),
    "truncated": Truncated(TruncatedOptions("truncated", window=2)),
    "forward": Forward(ForwardOptions("forward", chunk=7)),
    "difference": FiniteDifference(FiniteDifferenceOptions("finite_difference", radius=1e-4)),
    "neumann": Neumann(NeumannOptions("neumann", iterations=60, step=0.2, damping=0.0)),
    "evolution": Evolution(EvolutionOptions("evolution", pairs=30, deviation=1e-3)),
    "pes": Pes(PesOptions("pes", pairs=2, deviation=0.01)),
    "first_order": FirstOrder(FirstOrderOptions("first_order")),
}

FEW_PAIRS = Evolution(EvolutionOptions("evolution", pairs=2, deviation=0.01))


def directions(meta, count):
    for number in range(count):
        rng = generator("direction", number)
        yield {key: torch.randn(leaf.shape, generator=rng, dtype=torch.float64) for key, leaf in meta.items()}


def project(grad, direction):
    return sum((grad[key] * direction[key]).sum() for key in grad)


def close(actual, expected, rtol=1e-9, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("task", ["waves", "pictures"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_tasks_at_once_equal_one_after_the_other(kit, algorithm, task):
    at_once, each = (
        kit.make(kit.tasks[task](), algorithm=algorithm, vectorise=vectorise) for vectorise in (True, False)
    )
    for index in range(2):
        told, wanted = at_once.step(index), each.step(index)
        close(dict(at_once.meta), dict(each.meta), rtol=1e-7, atol=1e-9)
        close({key: told[key] for key in wanted}, wanted, rtol=1e-6, atol=1e-9)
        assert told.keys() == wanted.keys()


@pytest.mark.parametrize("task", ["waves", "pictures"])
@pytest.mark.parametrize("algorithm", ["maml", "anil", "meta_sgd"])
def test_agrees_with_central_differences_of_the_whole_adaptation(kit, algorithm, task):
    data = kit.tasks[task]()
    method = kit.make(data, algorithm=algorithm)
    meta = {key: leaf.detach().clone() for key, leaf in method.meta.items()}
    grad = kit.gradient_of(method)

    def outer(meta):
        losses = [
            kit.query_loss(data, kit.adapted(data, meta, support, 2, 0.1, last=algorithm == "anil"), query)
            for support, query in kit.episodes(data)
        ]
        return torch.stack(losses).mean().detach()

    for direction in directions(meta, 3):
        close(project(grad, direction), kit.along(outer, meta, direction, 1e-6), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("task", ["waves", "pictures"])
def test_first_order_maml_is_the_gradient_at_the_adapted_weights(kit, task):
    data = kit.tasks[task]()
    method = kit.make(data, algorithm="fomaml")
    found = []
    for support, query in kit.episodes(data):
        weights = kit.adapted(data, method.meta, support, 2, 0.1)
        leaves = {name: leaf.requires_grad_() for name, leaf in weights.items()}
        slopes = torch.autograd.grad(
            kit.query_loss(data, leaves, query),
            list(leaves.values()),
            materialize_grads=True,
            allow_unused=True,
        )
        found.append(dict(zip(leaves, slopes, strict=True)))
    expected = {f"init/{name}": torch.stack([one[name] for one in found]).mean(0) for name in found[0]}
    close(kit.gradient_of(method), expected, atol=1e-10)


@pytest.mark.parametrize("task", ["waves", "pictures"])
def test_reptile_goes_to_the_mean_of_the_adapted_weights(kit, task):
    data = kit.tasks[task]()
    method = kit.make(data, algorithm="reptile")
    ends = [kit.adapted(data, method.meta, support, 2, 0.1) for support, _ in kit.episodes(data)]
    method.step(0)
    expected = {f"init/{name}": torch.stack([end[name] for end in ends]).mean(0) for name in ends[0]}
    close({key: leaf.detach() for key, leaf in method.meta.items()}, expected, atol=1e-10)


@pytest.mark.parametrize("estimator", ["conjugate_gradient", "neumann"])
@pytest.mark.slow
def test_imaml_agrees_with_central_differences_of_converged_runs(kit, estimator):
    data = kit.tasks["waves"]()
    fields = {"algorithm": "imaml", "inner_steps": 60, "inner_learning_rate": 0.2}
    if estimator == "neumann":
        fields |= {"estimator": ESTIMATORS["neumann"], "vectorise": False}
    method = kit.make(data, **fields)
    meta = {key: leaf.detach().clone() for key, leaf in method.meta.items()}
    grad = kit.gradient_of(method)

    def outer(meta):
        ends = [(kit.adapted(data, meta, s, 60, 0.2, proximal=2.0), q) for s, q in kit.episodes(data)]
        return torch.stack([kit.query_loss(data, *end) for end in ends]).mean().detach()

    (direction,) = directions(meta, 1)
    close(project(grad, direction), kit.along(outer, meta, direction), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("algorithm", ["maml", "fomaml"])
@pytest.mark.parametrize("name", ["recompute", "truncated", "forward"])
def test_estimators_of_the_same_thing_agree(kit, name, algorithm):
    exact = kit.gradient_of(kit.make(algorithm=algorithm))
    method = kit.make(algorithm=algorithm, vectorise=False, estimator=ESTIMATORS[name])
    close(kit.gradient_of(method), exact)


@pytest.mark.parametrize(("name", "error"), [("difference", 1e-5), ("evolution", 0.7)])
def test_estimators_of_values_come_near(kit, name, error):
    exact = kit.gradient_of(kit.make(inner_steps=1))
    found = kit.gradient_of(kit.make(inner_steps=1, vectorise=False, estimator=ESTIMATORS[name]))
    away = sum((found[key] - exact[key]).square().sum() for key in exact).sqrt()
    assert away < error * sum(leaf.square().sum() for leaf in exact.values()).sqrt()


@pytest.mark.parametrize("vectorise", [True, False])
def test_without_inner_steps_it_is_joint_training(kit, vectorise):
    data = kit.tasks["waves"]()
    method = kit.make(data, inner_steps=0, vectorise=vectorise)
    weights = {key[5:]: leaf.detach().clone().requires_grad_() for key, leaf in method.meta.items()}
    loss = torch.stack([kit.query_loss(data, weights, query) for _, query in kit.episodes(data)]).mean()
    slopes = torch.autograd.grad(loss, list(weights.values()))
    expected = {f"init/{name}": slope for name, slope in zip(weights, slopes, strict=True)}
    close(kit.gradient_of(method), expected)


@pytest.mark.parametrize("algorithm", ["maml", "imaml"])
def test_the_step_descends_the_mean_of_its_situations(kit, algorithm):
    method = kit.make(algorithm=algorithm)
    found = [
        method.estimator.estimate(*situation, generator("unused")).grad for situation in method.situations(0)
    ]
    expected = {key: torch.stack([one[key] for one in found]).mean(0) for key in found[0]}
    close(kit.gradient_of(method), expected, rtol=1e-7)


@pytest.mark.parametrize("fields", [{}, {"vectorise": False, "estimator": FEW_PAIRS}])
def test_processes_share_the_tasks(kit, fields, monkeypatch):
    """The mean over two processes is what one alone finds, noise of estimators included."""
    fields = fields | {"clip": None}
    whole = kit.gradient_of(kit.make(**fields))
    monkeypatch.setattr(Processes, "average", lambda _, tree: tree)
    shares = [kit.gradient_of(kit.make(on=kit.machine(Processes(rank, 2)), **fields)) for rank in (0, 1)]
    close({key: (shares[0][key] + shares[1][key]) / 2 for key in whole}, whole, rtol=1e-7)
    assert any(not torch.allclose(shares[0][key], shares[1][key]) for key in whole)
    with pytest.raises(UserError, match="4 tasks a meta-batch do not divide over 3 processes"):
        kit.make(on=kit.machine(Processes(0, 3)))


def _saved(state):
    """Through a file, as a checkpoint goes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("algorithm", ["meta_sgd", "reptile"])
def test_resume_is_bit_exact(kit, algorithm):
    fields = {"algorithm": algorithm, "optimizer": "adam", "learning_rate": 0.01, "clip": 0.1}
    whole, first, second = (kit.make(**fields) for _ in range(3))
    rows = [whole.step(index) for index in range(5)]
    for index in range(2):
        first.step(index)
    first.evaluate("valid")
    second.load_state_dict(_saved(first.state_dict()))
    again = [second.step(index) for index in range(2, 5)]

    assert again == rows[2:]
    assert all(torch.equal(second.meta[key], leaf) for key, leaf in whole.meta.items())
    assert second.evaluate("valid") == whole.evaluate("valid")


def test_clips_the_mean_gradient(kit):
    grad = kit.gradient_of(kit.make(clip=0.01))
    close(sum(leaf.square().sum() for leaf in grad.values()).sqrt(), torch.tensor(0.01).double(), rtol=1e-3)


@pytest.mark.parametrize("task", ["waves", "pictures"])
@pytest.mark.parametrize("vectorise", [True, False])
def test_evaluation_adapts_every_task_of_the_sweep(kit, task, vectorise):
    data = kit.tasks[task]()
    method = kit.make(data, vectorise=vectorise)
    found, end, losses = method.evaluate("test"), data.spec.support, {0: [], 3: []}
    for x, y, key in data.sweep("test"):
        for i in range(len(x)):
            support, query = (
                type(data.batch("test", 0))(p[0], p[1], key)
                for p in ((x[i, :end], y[i, :end]), (x[i, end:], y[i, end:]))
            )
            for steps, values in losses.items():
                weights = kit.adapted(data, method.meta, support, steps, 0.1)
                values.append(kit.query_loss(data, weights, query).detach())
    before, after = (torch.stack(losses[steps]) for steps in (0, 3))
    close(found["test/loss_before"], before.mean())
    close(found["test/loss"], after.mean(), rtol=1e-8)
    close(found["test/loss_interval"], 2.570582 * after.std() / 6**0.5, rtol=1e-6)  # t of 5 degrees, 97.5 %
    assert ("test/error" in found) == (task == "pictures")


@pytest.mark.parametrize("algorithm", ["maml", "meta_sgd"])
def test_leaves_what_a_user_takes_away(kit, algorithm, tmp_path):
    method = kit.make(algorithm=algorithm, evaluation_steps=10)
    method.step(0)
    after = method.evaluate("test")["test/loss"]
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        method.artifacts(folder)
    weights = load_file(folders[0] / "initialisation.safetensors")
    assert not kit.network_of(method.task).load_state_dict(weights).missing_keys
    assert all(torch.equal(leaf, method.meta[f"init/{name}"]) for name, leaf in weights.items())
    assert (folders[0] / "rates.safetensors").exists() == (algorithm == "meta_sgd")
    curve = json.loads((folders[0] / "adaptation.json").read_text())
    (values,) = curve["series"].values()
    assert (curve["x"], values[-1]) == (list(range(11)), pytest.approx(float(after)))
    assert (folders[0] / "adaptation.svg").read_bytes() == (folders[1] / "adaptation.svg").read_bytes()


REFUSALS = [
    ({"estimator": None}, "got none with maml, which needs one: choose hypergradient=unrolled"),
    ({"estimator": ESTIMATORS["pes"]}, "got pes with maml, .* choose hypergradient=evolution or unrolled"),
    ({"estimator": ESTIMATORS["first_order"]}, "choose method.algorithm=fomaml"),
    ({"estimator": ESTIMATORS["neumann"]}, "choose method.algorithm=imaml"),
    ({"estimator": ESTIMATORS["difference"], "vectorise": False}, "set method.inner_steps=1"),
    ({"algorithm": "fomaml", "estimator": ESTIMATORS["evolution"], "vectorise": False}, "leaves out second"),
    ({"estimator": ESTIMATORS["truncated"]}, "or set method.vectorise=false"),
    ({"estimator": ESTIMATORS["recompute"]}, "or set method.vectorise=false"),
    ({"algorithm": "imaml", "estimator": ESTIMATORS["neumann"]}, "or set method.vectorise=false"),
    ({"algorithm": "imaml", "estimator": ESTIMATORS["truncated"]}, "choose hypergradient=conjugate_gradient"),
    ({"algorithm": "imaml", "proximal": 0.0}, "method.proximal: got 0"),
    ({"algorithm": "reptile", "estimator": ESTIMATORS["recompute"]}, "set hypergradient=none"),
    ({"algorithm": "anil", "inner_steps": 0}, "0 is joint training"),
    ({"backend": "learn2learn"}, "set method.vectorise=false"),
    (
        {"backend": "learn2learn", "vectorise": False, "estimator": ESTIMATORS["truncated"]},
        "choose hypergradient=unrolled hypergradient.recompute=false",
    ),
    (
        {"backend": "learn2learn", "vectorise": False, "algorithm": "anil"},
        "it takes maml and fomaml here",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "words"), REFUSALS)
def test_refuses_what_would_not_mean_its_name(kit, fields, words):
    with pytest.raises(UserError, match=words):
        kit.make(**fields)


def test_refuses_compilation_and_situations_of_reptile(kit):
    with pytest.raises(UserError, match="no compiled form"):
        kit.make(on=kit.machine(compile=True))
    with pytest.raises(UserError, match="has no hypergradient"):
        kit.make(algorithm="reptile").situations(0)


@pytest.mark.slow
def test_learns_to_adapt_to_sine_waves():
    """After 200 meta-steps tasks adapt to half the loss that they adapt to after as much joint training."""
    cli.register_all()
    lines = [
        "recipe=maml/sinusoid_maml", "machine=cpu", "machine.threads=1", "task.evaluated=100",
        "task.batch=10", "method.learning_rate=0.01",
    ]  # fmt: skip
    losses = []
    for steps in (1, 0):
        method = build(compose([*lines, f"method.inner_steps={steps}"])).method
        for index in range(200):
            method.step(index)
        losses.append(float(method.evaluate("valid")["valid/loss"]))
    assert losses[0] < 0.6 * losses[1], losses
