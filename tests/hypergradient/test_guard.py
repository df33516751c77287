"""Modules that functional_call would corrupt are refused."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from metalearn.hypergradient.guard import check_module
from metalearn.registry import UserError


def test_a_submodule_under_two_names_is_refused():
    layer = nn.Linear(2, 2)
    with pytest.raises(UserError, match="one Linear is registered twice, as '0' and '2'; register each"):
        check_module(nn.Sequential(layer, nn.Tanh(), layer))


def test_a_nested_double_registration_is_refused():
    inside = nn.Sequential(nn.Linear(2, 2))
    module = nn.ModuleDict({"outer": nn.ModuleList([inside]), "again": inside[0]})
    with pytest.raises(UserError, match="registered twice"):
        check_module(module)


def test_distinct_modules_and_a_shared_parameter_pass():
    module = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    module[2].weight = module[0].weight
    assert check_module(module) is module


@pytest.mark.parametrize("double", [False, True])
def test_the_danger_is_real(double):
    """What the guard prevents: after the call the weights are no Parameters any more (torch 2.13)."""
    layer = nn.Linear(2, 2)
    module = nn.Sequential(layer, layer if double else nn.Linear(2, 2))
    params = {key: leaf.detach().clone() for key, leaf in module.named_parameters()}
    functional_call(module, params, (torch.zeros(1, 2),))
    intact = isinstance(module[0].weight, nn.Parameter) and isinstance(module[1].weight, nn.Parameter)
    if double and intact:
        pytest.skip("this torch no longer corrupts such modules")
    assert intact is not double
