"""Any module with generated parameters: what it owns, its gradients, what it keeps in evaluation."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metalearn.hypernetworks.static.config import GeneratorOptions
from metalearn.hypernetworks.static.hypernetize import Hypernetwork, chosen, hypernetize
from metalearn.registry import UserError

ALL = chosen(["convolutions", "linears", "biases", "batch_norms"], [])
KINDS = ["layer_embedding", "chunked"]


@pytest.fixture(params=KINDS)
def options(request, generator_options) -> GeneratorOptions:
    return generator_options(request.param)


@pytest.fixture
def hyper(options, conv_net) -> Hypernetwork:
    torch.manual_seed(1)
    return hypernetize(conv_net, options, ALL)


def _x(batch=3):
    return torch.randn(batch, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_generated_parameters_belong_to_the_generator_alone(options, conv_net):
    plain = copy.deepcopy(conv_net)
    hyper = hypernetize(conv_net, options, chosen(["convolutions", "batch_norms"], ["3.*"]))
    assert [name for name, _ in hyper.module.named_parameters()] == [
        "0.bias",
        "3.weight",
        "5.weight",
        "5.bias",
    ]
    taken = {"0.weight", "1.weight", "1.bias"}
    made = hyper.weights()
    assert set(made) == taken
    assert all(made[name].shape == plain.get_parameter(name).shape for name in taken)
    assert not any(name.endswith(tuple(taken)) for name in hyper.state_dict() if name.startswith("module."))
    assert len(list(hyper.parameters())) == 4 + len(list(hyper.generator.parameters()))


def test_answers_are_the_plain_networks_with_the_generated_weights(hyper):
    plain = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(),
        nn.Conv2d(4, 2, 3, bias=False), nn.Flatten(), nn.Linear(8, 3),
    ).double()  # fmt: skip
    plain.load_state_dict(hyper.weights(), strict=False)
    for training in (True, False):
        plain.train(training)
        hyper.train(training)
        torch.testing.assert_close(hyper(_x()), plain(_x()))
    torch.testing.assert_close(hyper.module[1].running_mean, plain[1].running_mean)
    assert hyper.module[1].num_batches_tracked == 1


def test_gradients_of_both_orders(hyper):
    names, leaves = zip(*hyper.named_parameters(), strict=True)
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]

    def answer(x, *values):
        return functional_call(hyper, dict(zip(names, values, strict=True)), (x,)).square().mean(0)

    inputs = (_x(2).requires_grad_(), *leaves)
    assert torch.autograd.gradcheck(answer, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(answer, inputs, fast_mode=True)


def test_functional_gradients_agree_with_autograd(hyper):
    hyper.eval()
    values = dict(hyper.named_parameters())
    grads = torch.func.grad(lambda v: functional_call(hyper, v, (_x(),)).square().sum())(values)
    expected = torch.autograd.grad(hyper(_x()).square().sum(), list(values.values()))
    for one, other in zip(grads.values(), expected, strict=True):
        torch.testing.assert_close(one, other)


class Counted(nn.Module):
    """Counts how often weights are made."""

    def __init__(self, generator):
        super().__init__()
        self.generator, self.calls = generator, 0

    def forward(self, condition=None):
        self.calls += 1
        return self.generator(condition)


@pytest.fixture
def counted(hyper) -> Hypernetwork:
    return Hypernetwork(hyper.module, Counted(hyper.generator)).eval()  # type: ignore[arg-type]


def _fresh(hyper):
    return functional_call(hyper.module, hyper.generator(), (_x(),))


@torch.no_grad()
def test_weights_are_made_once_in_evaluation(counted):
    plain = Hypernetwork(counted.module, counted.generator.generator)
    for _ in range(3):
        torch.testing.assert_close(counted(_x()), _fresh(plain))
    assert counted.generator.calls == 1
    with torch.enable_grad():
        assert counted(_x()).requires_grad
    assert counted.generator.calls == 2
    twin = copy.deepcopy(counted)
    _by_optimizer(twin)
    assert not torch.allclose(twin(_x()), counted(_x()))


def _by_optimizer(hyper):
    for parameter in hyper.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam(hyper.parameters(), lr=0.1, fused=True).step()


def _by_loading(hyper):
    hyper.load_state_dict({name: value + 0.1 for name, value in hyper.state_dict().items()})


def _in_place(hyper):
    next(hyper.generator.parameters()).mul_(2.0)


def _by_data(hyper):
    parameter = next(hyper.generator.parameters())
    parameter.data = parameter.data * 2.0


def _by_data_and_mode(hyper):
    hyper.train()
    next(hyper.generator.parameters()).data.mul_(2.0)
    hyper.eval()


CHANGES = [_by_optimizer, _by_loading, _in_place, _by_data, _by_data_and_mode]


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_kept_weights_are_never_stale(counted, change):
    before = counted(_x())
    change(counted)
    after = counted(_x())
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, _fresh(counted))


@torch.no_grad()
def test_nothing_new_comes_to_lie_where_kept_weights_came_from(counted):
    """Else a second change could look like none: by its address."""
    parameter = next(counted.generator.parameters())
    for _ in range(5):
        counted(_x())
        before = parameter.data_ptr()
        parameter.data = parameter.data * 1.1
        others = [torch.empty_like(parameter) for _ in range(200)]
        assert before not in [other.data_ptr() for other in others]
        torch.testing.assert_close(counted(_x()), _fresh(counted))


@torch.no_grad()
def test_a_step_ends_what_every_hypernetwork_keeps(generator_options, conv_net):
    """Of several in one process, of which one is gone; torch runs its hooks while they are cleared."""
    several = [hypernetize(copy.deepcopy(conv_net), generator_options(), ALL).eval() for _ in range(3)]
    first = [hyper.weights() for hyper in several]
    assert all(hyper.weights() is weights for hyper, weights in zip(several, first, strict=True))
    del several[1], first[1]
    _by_optimizer(several[0])
    assert not any(hyper.weights() is weights for hyper, weights in zip(several, first, strict=True))


@torch.no_grad()
def test_replaced_parameters_and_conditions_are_not_mixed_up(generator_options, conv_net):
    hyper = hypernetize(conv_net, generator_options(conditions=2), ALL).eval()
    each = [hyper(_x(), condition=k) for k in range(2)]
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(hyper(_x(), condition=0), each[0])
    torch.testing.assert_close(hyper(_x(), condition=torch.tensor(1)), each[1])
    doubled = {f"generator.{name}": 2 * value for name, value in hyper.generator.named_parameters()}
    assert not torch.allclose(functional_call(hyper, doubled, (_x(),), {"condition": 0}), each[0])
    x = _x()
    stacked = torch.func.vmap(lambda k: hyper(x, condition=k))(torch.arange(2))
    torch.testing.assert_close(stacked, torch.stack(each))


@torch.no_grad()
def test_an_ensemble_of_generators_in_one_pass(hyper):
    """vmap puts batches in the place of parameters: nothing of them may be kept."""
    hyper.eval()
    x, before = _x(), hyper(_x())
    stacked = {name: torch.stack([value, 2 * value]) for name, value in hyper.named_parameters()}
    both = torch.func.vmap(lambda values: functional_call(hyper, values, (x,)))(stacked)
    torch.testing.assert_close(both[0], before)
    doubled = {name: value[1] for name, value in stacked.items()}
    torch.testing.assert_close(both[1], functional_call(hyper, doubled, (x,)))
    torch.testing.assert_close(hyper(x), before)


def test_state_goes_round(hyper, options):
    torch.manual_seed(5)
    hyper(_x())  # moves running statistics
    state, hyper_answer = hyper.state_dict(), hyper.eval()(_x())
    other = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(),
        nn.Conv2d(4, 2, 3, bias=False), nn.Flatten(), nn.Linear(8, 3),
    ).double()  # fmt: skip
    other = hypernetize(other, options, ALL).eval()
    assert not torch.allclose(other(_x()), hyper_answer)
    other.load_state_dict(state)
    torch.testing.assert_close(other(_x()), hyper_answer)


def test_tied_parameters_are_refused(options):
    layer = nn.Linear(4, 4)
    with pytest.raises(UserError, match=r"0.weight and 1.weight are one parameter"):
        hypernetize(nn.Sequential(layer, layer), options, ALL)
    tied = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(UserError, match="tied"):
        hypernetize(tied, options, chosen(["linears"], []))
    hypernetize(tied, options, chosen(["biases"], []))  # what is not generated may be tied


def test_what_cannot_be_generated_is_refused(options):
    with pytest.raises(UserError, match="none of the network's parameters"):
        hypernetize(nn.Linear(2, 2), options, chosen(["convolutions"], []))
    with pytest.raises(UserError, match="recurrent modules"):
        hypernetize(nn.LSTM(2, 2), options, lambda _: True)


def test_any_parameter_can_come_in_chunks(generator_options):
    module = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    hyper = hypernetize(module, generator_options("chunked", layer_embedding=2), lambda _: True)
    assert not list(hyper.module.parameters())
    assert (hyper.weights()["1.weight"] - 1).abs().max() < 0.1
    hyper(torch.tensor([1, 2])).sum().backward()
    assert all(parameter.grad is not None for parameter in hyper.parameters())


@pytest.mark.slow
def test_exported_program_answers_alike(hyper):
    hyper.eval()
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        hyper(_x())  # keeps weights, which the program must not hold instead of its own
        program = torch.export.export(hyper, (_x(),), dynamic_shapes=(({0: batch},),))
        torch.testing.assert_close(program.module()(_x(5)), hyper(_x(5)))
        moved = {name: value * 1.5 for name, value in hyper.state_dict().items()}
        hyper.load_state_dict(moved)
        loaded = program.module()
        loaded.load_state_dict(moved)
        torch.testing.assert_close(loaded(_x()), hyper(_x()))
