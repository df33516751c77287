"""A trained rule as torch.optim.Optimizer: meta-training's own trajectory, and torch's whole interface."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

import metalearn
from metalearn.learned_optimizers import stored
from metalearn.learned_optimizers.learnable_adam import LearnableAdam
from metalearn.learned_optimizers.lstm import LstmRule
from metalearn.learned_optimizers.optimizees import Single
from metalearn.learned_optimizers.rollout import rollout
from metalearn.learned_optimizers.rule_options import LearnableAdamOptions
from metalearn.learned_optimizers.rules import HandRule
from metalearn.learned_optimizers.torch_optimizer import LearnedOptimizer
from metalearn.registry import UserError
from metalearn.rng import generator, seeded

X, Y = torch.randn(24, 4, generator=generator("x")), torch.randint(3, (24,), generator=generator("y"))


def lstm(kit, dtype=torch.float32):
    """A rule that moves a lot, and its meta-parameters."""
    rule = LstmRule(kit.rule(hidden=5, output_scale=0.3), kit.context(kit.Blobs()).machine)
    return rule, {key: leaf.to(dtype) for key, leaf in rule.init(generator("meta")).items()}


def hand(kit, name, rate=0.05):
    return HandRule(name, rate, kit.tuned()), {}


def model(dtype=torch.float32, hidden=5) -> nn.Sequential:
    with seeded("model"):
        return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3)).to(dtype)


def train(network, optimizer, steps=4, first=0, each=None):
    """Steps on parts of the data; the losses before them."""
    losses = []
    for step in range(first, first + steps):
        rows = slice(step % 3 * 8, step % 3 * 8 + 8)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(X[rows].to(next(network.parameters()).dtype)).float(), Y[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if each:
            each(loss.item())
    return losses


def values(network) -> torch.Tensor:
    return torch.cat([leaf.detach().double().flatten() for leaf in network.parameters()])


def batches(optimizer) -> list[dict]:
    return [state for state in optimizer.state.values() if state]


def slots_of(optimizer) -> list[torch.Tensor]:
    return [leaf for batch in batches(optimizer) for leaf in batch["slots"].values()]


def test_moves_as_in_meta_training(kit, float64):  # noqa: ARG001
    """The rollout of the same rule from the same start on the same data."""
    rule, meta = lstm(kit, torch.float64)
    context, options = kit.context(kit.Blobs()), kit.learned(valid_problems=1, horizon=12)
    expected = rollout(rule, meta, Single(options, context), "valid")[:, 0]
    optimizee, network = kit.optimizee(options, context), context.network()
    start = optimizee.layout.unflatten(optimizee.start("valid", (0,))[0])
    network.load_state_dict(start)
    optimizer, losses = LearnedOptimizer(network.named_parameters(), rule, meta), []
    for batch in optimizee.feed("valid", 1):
        optimizer.zero_grad()
        loss = context.task.loss(network(batch.x[0]).logits, batch._replace(x=batch.x[0], y=batch.y[0]))
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
    torch.testing.assert_close(torch.stack(losses), expected, rtol=0, atol=1e-12)
    assert (expected - expected[0]).abs().max() > 0.1


def learnable_adam(kit, rate):
    """At its start, as meta-training finds it."""
    options = LearnableAdamOptions("adam", rate, [0.9, 0.999], 1e-8, "single", "none", 100)
    rule = LearnableAdam(options, kit.context(kit.Blobs()).machine)
    return rule, rule.init(generator("meta"))


@pytest.mark.parametrize("make", [learnable_adam, lambda kit, rate: hand(kit, "adam", rate)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_in_its_place_is_torchs(kit, make, decay):
    """Its weight decay is that of AdamW at a rate of 1."""
    ours, theirs = model(torch.float64), model(torch.float64)
    rule, meta = make(kit, 0.05)
    train(ours, LearnedOptimizer(ours.parameters(), rule, meta, weight_decay=0.05 * decay), 8)
    train(theirs, torch.optim.AdamW(theirs.parameters(), 0.05, weight_decay=decay), 8)
    torch.testing.assert_close(values(ours), values(theirs), rtol=1e-12, atol=1e-12)


SCHEDULES = {  # of a rate that starts at `base`
    "LambdaLR": lambda optimizer, base: lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step),  # noqa: ARG005
    "CosineAnnealingLR": lambda optimizer, base: lr_scheduler.CosineAnnealingLR(optimizer, 6),  # noqa: ARG005
    "OneCycleLR": lambda optimizer, base: lr_scheduler.OneCycleLR(
        optimizer, 3 * base, 8, cycle_momentum=False
    ),
    "ReduceLROnPlateau": lambda optimizer, base: lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=0, threshold=1e9 * base
    ),
    "SequentialLR": lambda optimizer, base: lr_scheduler.SequentialLR(  # noqa: ARG005
        optimizer,
        [lr_scheduler.LinearLR(optimizer, 0.1, 1, 3), lr_scheduler.ExponentialLR(optimizer, 0.7)],
        [3],
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_multiply(kit, name):
    """SGD of rate 1/20 under a schedule of the multiplier is SGD under that schedule of the rate."""
    reached, rates = [], []
    for base, make in (
        (1.0, lambda params: LearnedOptimizer(params, *hand(kit, "sgd"))),
        (0.05, lambda params: torch.optim.SGD(params, 0.05)),
    ):
        network = model(torch.float64)
        optimizer = make(network.parameters())
        schedule = SCHEDULES[name](optimizer, base)
        plateau = isinstance(schedule, lr_scheduler.ReduceLROnPlateau)
        seen = []

        def each(loss, schedule=schedule, plateau=plateau, seen=seen, optimizer=optimizer, base=base):
            schedule.step(*([loss] if plateau else []))
            seen.append(optimizer.param_groups[0]["lr"] / base)

        train(network, optimizer, 7, each=each)
        reached.append(values(network))
        rates.append(seen)
    assert rates[0] == pytest.approx(rates[1])
    assert len(set(rates[0])) > 2
    torch.testing.assert_close(reached[0], reached[1], rtol=1e-10, atol=1e-12)


def test_a_multiplier_may_be_a_tensor(kit):
    reached = []
    for lr in (0.5, torch.tensor(0.5)):
        network = model()
        train(network, LearnedOptimizer(network.parameters(), *lstm(kit), lr=lr))
        reached.append(values(network))
    assert torch.equal(*reached)


def test_groups_are_optimizers_of_their_own(kit):
    one, two = model(), model()
    first, second = {"lr": 0.3, "weight_decay": 0.1}, {"lr": 2.0}
    groups = [{"params": one[0].parameters(), **first}]
    optimizer = LearnedOptimizer(groups, *lstm(kit))
    optimizer.add_param_group({"params": one[2].parameters(), **second})
    apart = [
        LearnedOptimizer(two[0].parameters(), *lstm(kit), **first),
        LearnedOptimizer(two[2].parameters(), *lstm(kit), **second),
    ]
    for _ in range(4):
        for network in (one, two):
            network.zero_grad()
            F.cross_entropy(network(X), Y).backward()
        for each in (optimizer, *apart):
            each.step()
    assert torch.equal(values(one), values(two))
    assert len(batches(optimizer)) == 2


def test_one_batch_for_a_model(kit):
    network = model()
    optimizer = LearnedOptimizer(network.named_parameters(), *lstm(kit))
    train(network, optimizer, 2)
    (state,) = batches(optimizer)
    assert state["members"] == [0, 1, 2, 3]
    assert [*next(iter(optimizer._layouts.values())).shapes] == [
        name for name, _ in network.named_parameters()
    ]
    held = sum(leaf.nbytes for leaf in slots_of(optimizer)) / len(values(network))
    assert held == optimizer.memory_per_parameter == 2 * 2 * 5 * 4


@pytest.mark.parametrize("rule", ["lstm", "adam"])
def test_without_a_gradient_a_tensor_and_its_memory_stay(kit, rule):
    """The others move as if it were not there."""
    made = lstm(kit) if rule == "lstm" else hand(kit, "adam")
    networks = model(), model()
    whole = LearnedOptimizer(networks[0].parameters(), *made)
    alone = LearnedOptimizer([*networks[1].parameters()][1:], *made)
    for step in range(5):
        for network, optimizer in zip(networks, (whole, alone), strict=True):
            network.zero_grad()
            F.cross_entropy(network(X), Y).backward()
            if step in (2, 3):
                network[0].weight.grad = None
            if step == 2:
                before = networks[0][0].weight.clone(), slots_of(whole)
            optimizer.step()
        networks[1][0].weight.data = networks[0][0].weight.data.clone()
        if step == 3:
            assert torch.equal(networks[0][0].weight, before[0])
            for leaf, old in zip(slots_of(whole), before[1], strict=True):
                assert leaf.dim() < 2 or torch.equal(leaf[:, :20], old[:, :20])
                assert leaf.dim() < 2 or not torch.equal(leaf[:, 20:], old[:, 20:])
    torch.testing.assert_close(values(networks[0]), values(networks[1]))
    assert not torch.equal(networks[0][0].weight, before[0])


def test_a_late_first_gradient_opens_a_batch(kit):
    """A frozen tensor costs no memory; when it thaws, it starts as a tensor of a new optimizer would."""
    network, other = model(), model()
    network[0].requires_grad_(False)
    optimizer = LearnedOptimizer(network.parameters(), *lstm(kit))
    train(network, optimizer, 2)
    assert [batch["members"] for batch in batches(optimizer)] == [[2, 3]]
    network[0].requires_grad_(True)
    other.load_state_dict(network.state_dict())
    fresh = LearnedOptimizer(other[0].parameters(), *lstm(kit))
    for each, chosen in ((network, optimizer), (other, fresh)):
        F.cross_entropy(each(X), Y).backward()
        chosen.step()
    assert [batch["members"] for batch in batches(optimizer)] == [[2, 3], [0, 1]]
    assert torch.equal(network[0].weight, other[0].weight)
    resumed = LearnedOptimizer(network.parameters(), *lstm(kit))
    resumed.load_state_dict(optimizer.state_dict())
    assert [batch["members"] for batch in batches(resumed)] == [[2, 3], [0, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_state_dict_round_trip(kit, dtype):
    """Bit for bit, through a file; slots of bfloat16 parameters are float32 before and after."""
    through, resumed = model(dtype), model(dtype)
    optimizer = LearnedOptimizer(through.parameters(), *lstm(kit))
    train(through, optimizer, 3)
    file = io.BytesIO()
    torch.save({"model": through.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    kept = torch.load(file, weights_only=True)
    train(through, optimizer, 3, first=3)

    resumed.load_state_dict(kept["model"])
    again = LearnedOptimizer(resumed.parameters(), *lstm(kit), lr=7.0)
    again.load_state_dict(kept["optimizer"])
    assert again.param_groups[0]["lr"] == 1.0
    train(resumed, again, 3, first=3)
    assert torch.equal(values(through), values(resumed))
    for ours, theirs in zip(slots_of(again), slots_of(optimizer), strict=True):
        assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.equal(ours, theirs)


def test_a_state_dict_is_a_snapshot(kit):
    """Steps after it do not change it: to go back takes no copy."""
    network = model()
    optimizer = LearnedOptimizer(network.parameters(), *lstm(kit))
    train(network, optimizer, 2)
    weights, state = copy.deepcopy(network.state_dict()), optimizer.state_dict()
    train(network, optimizer, 2)
    reached = values(network)
    network.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(network, optimizer, 2)
    assert torch.equal(values(network), reached)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_alike(kit, copied):
    network = model()
    optimizer = LearnedOptimizer(network.named_parameters(), *lstm(kit), weight_decay=0.01)
    train(network, optimizer, 3)
    other, again = copied((network, optimizer))
    train(network, optimizer, 3)
    assert not torch.equal(values(network), values(other))
    train(other, again, 3)
    assert torch.equal(values(network), values(other))


def test_states_of_another_rule_or_model_are_refused(kit):
    network, larger = model(), model(hidden=6)
    optimizers = [
        LearnedOptimizer(network.parameters(), *lstm(kit)),
        LearnedOptimizer(network.parameters(), *hand(kit, "adam")),
        LearnedOptimizer(larger.parameters(), *lstm(kit)),
    ]
    for optimizer, each in zip(optimizers, (network, network, larger), strict=True):
        train(each, optimizer, 1)
    kept = optimizers[0].state_dict()
    with pytest.raises(UserError, match=r"got first/theta \[1, 43\].* have hidden\.0 \[1, 43, 5\]"):
        optimizers[0].load_state_dict(optimizers[1].state_dict())
    with pytest.raises(UserError, match=r"got hidden\.0 \[1, 51, 5\].* have hidden\.0 \[1, 43, 5\]"):
        optimizers[0].load_state_dict(optimizers[2].state_dict())
    with pytest.raises(UserError, match="got no slots"):
        optimizers[0].load_state_dict(_torchs(network))
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizers[0].load_state_dict({"state": {}, "param_groups": []})
    assert all(
        map(torch.equal, slots_of(optimizers[0]), next(iter(kept["state"].values()))["slots"].values())
    )


def _torchs(network):
    optimizer = torch.optim.Adam(network.parameters())
    train(network, optimizer, 1)
    return optimizer.state_dict()


def test_closure_is_called_once_with_gradients_on(kit):
    network, calls = model(), []
    optimizer = LearnedOptimizer(network.parameters(), *lstm(kit))

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = F.cross_entropy(network(X), Y)
        loss.backward()
        return loss

    losses = [optimizer.step(closure) for _ in range(3)]
    assert calls == [True] * 3
    assert losses[0] != losses[2]


def test_hooks_and_gradients_kept_as_zeros(kit):
    network, seen = model(), []
    optimizer = LearnedOptimizer(network.parameters(), *lstm(kit))
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    train(network, optimizer, 1)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    assert seen == ["before", "after"] * 2


def test_maximize_is_the_descent_of_the_opposite(kit):
    reached = []
    for sign in (1, -1):
        network = model()
        optimizer = LearnedOptimizer(network.parameters(), *lstm(kit), maximize=sign < 0)
        for _ in range(3):
            optimizer.zero_grad()
            (sign * F.cross_entropy(network(X), Y)).backward()
            optimizer.step()
        reached.append(values(network))
    assert torch.equal(*reached)


def test_grad_scaler_skips_what_is_not_finite(kit):
    """And otherwise undoes its scale before the rule sees a gradient."""
    network, plain = model(), model()
    optimizer = LearnedOptimizer(network.parameters(), *lstm(kit))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(4):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            loss = F.cross_entropy(network(X), Y)
        scaler.scale(loss).backward()
        before, slots = values(network), slots_of(optimizer)
        if step == 2:
            network[2].bias.grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(values(network), before) == (step == 2)
        assert step != 2 or all(map(torch.equal, slots, slots_of(optimizer)))
    assert scaler.get_scale() == 2.0**9
    other = LearnedOptimizer(plain.parameters(), *lstm(kit))
    for _ in range(3):
        other.zero_grad()
        F.cross_entropy(plain(X), Y).backward()
        other.step()
    torch.testing.assert_close(values(network), values(plain))


def test_under_autocast_the_rule_stays_in_full_precision(kit):
    reached = []
    for enabled in (False, True):
        network = model()
        optimizer = LearnedOptimizer(network.parameters(), *lstm(kit))
        F.cross_entropy(network(X), Y).backward()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            optimizer.step()
        reached.append(values(network))
    assert torch.equal(*reached)


def test_precisions_may_be_mixed(kit):
    """Half precision shares the batch of float32; float64 has its own."""
    kinds = [torch.bfloat16, torch.float32, torch.float64, torch.float16]
    tensors = [torch.ones(3, dtype=kind, requires_grad=True) for kind in kinds]
    optimizer = LearnedOptimizer(tensors, *lstm(kit))
    for tensor in tensors:
        tensor.grad = torch.tensor([0.5, -0.25, 2.0]).to(tensor.dtype)
    for _ in range(3):
        optimizer.step()
    assert [batch["members"] for batch in batches(optimizer)] == [[0, 1, 3], [2]]
    for tensor in tensors:
        rounding = 3 * torch.finfo(tensor.dtype).eps + 1e-6
        torch.testing.assert_close(tensor.detach().float(), tensors[1].detach(), rtol=0, atol=rounding)
    assert (tensors[1].detach() - 1).abs().min() > 1e-3


def test_memory_formats_do_not_matter(kit):
    """Coordinates are matched by place, whatever the strides."""
    reached = []
    for form in (torch.contiguous_format, torch.channels_last):
        with seeded("convolution"):
            network = nn.Conv2d(2, 3, 3).to(memory_format=form)
        optimizer = LearnedOptimizer(network.parameters(), *lstm(kit))
        x = torch.randn(2, 2, 5, 5, generator=generator("picture")).to(memory_format=form)
        for _ in range(3):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
        reached.append(values(network))
    torch.testing.assert_close(*reached)


class _Counted(TorchDispatchMode):
    """How many operations there are that compute something."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", ["lstm", "adam"])
def test_as_many_operations_for_many_tensors_as_for_two(kit, rule):
    counts = []
    for number in (2, 60):
        tensors = [torch.ones(2, 3, requires_grad=True) for _ in range(number)]
        made = lstm(kit) if rule == "lstm" else hand(kit, "adam")
        optimizer = LearnedOptimizer(tensors, *made, weight_decay=0.1)
        for tensor in tensors:
            tensor.grad = torch.ones_like(tensor)
        optimizer.step()
        with _Counted() as counted:
            optimizer.step()
        counts.append(counted.names)
    assert counts[0] == counts[1]
    assert sum("_foreach_add_" in name for name in counts[0]) == 1


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda kit: LearnedOptimizer([torch.ones(2, dtype=torch.cfloat)], *lstm(kit)), "torch.complex64"),
        (lambda kit: LearnedOptimizer([torch.ones(2)], *lstm(kit), lr=-1.0), "lr=-1.0, must be at least 0"),
        (lambda kit: LearnedOptimizer([torch.ones(2)], *lstm(kit), weight_decay=-1.0), "weight_decay=-1.0"),
        (
            lambda kit: LearnedOptimizer([("a", torch.ones(2)), ("a", torch.ones(3))], *lstm(kit)),
            "two parameters of a group are named 'a'",
        ),
    ],
)
def test_refused(kit, make, match):
    with pytest.raises(UserError, match=match):
        make(kit)


def test_a_refused_group_is_not_added(kit):
    optimizer = LearnedOptimizer([torch.ones(2)], *lstm(kit))
    with pytest.raises(UserError, match="complex64"):
        optimizer.add_param_group({"params": [torch.ones(2, dtype=torch.cfloat)]})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused_before_anything_moves(kit):
    dense, table = torch.ones(2, requires_grad=True), nn.Embedding(5, 2, sparse=True)
    optimizer = LearnedOptimizer([{"params": [dense]}, {"params": table.parameters()}], *lstm(kit))
    (table(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(UserError, match=r"sparse gradient of shape \[5, 2\].*sparse=False"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(2))


def test_from_run_leaves_torch_s_settings(kit, tmp_path):
    stored.save(tmp_path, *lstm(kit), {})
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        make = metalearn.LearnedOptimizer.from_run(tmp_path)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    networks = model(), model()
    train(networks[0], make(networks[0].parameters(), lr=0.5))
    train(networks[1], LearnedOptimizer(networks[1].parameters(), *lstm(kit), lr=0.5))
    assert torch.equal(values(networks[0]), values(networks[1]))


def test_a_tensor_without_dimensions_moves(kit):
    scale = nn.Parameter(torch.ones(()))
    optimizer = LearnedOptimizer([scale], *lstm(kit))
    scale.square().backward()
    optimizer.step()
    assert scale.shape == ()
    assert scale.item() != 1
