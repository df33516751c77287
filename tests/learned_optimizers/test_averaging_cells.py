"""Global averaging cells: by hand, and the norm of the gradient that they can carry to all coordinates."""

import pytest
import torch

from metalearn.learned_optimizers.averaging_cells import averaged
from metalearn.learned_optimizers.layout import Layout
from metalearn.registry import UserError
from metalearn.rng import generator

LAYOUT = Layout({"a": (2, 3), "b": (4,)}, torch.device("cpu"))


def test_means_by_hand():
    activation = torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0], [10.0, 0.0, 0.0], [20.0, 1.0, 1.0]])
    expected = [[2.0, 2.0, 3.0], [2.0, 4.0, 5.0], [15.0, 0.0, 0.0], [15.0, 1.0, 1.0]]
    assert averaged(activation, 1, problems=2).tolist() == expected
    assert averaged(activation, 0, problems=2) is activation


def _squaring(kit):
    """One layer whose two cells see +g and -g: sigmoid(e g) tanh(d g), twice, sums to e d g^2 / 2."""
    rule = kit.build_rule(
        "lstm", layers=1, hidden=2, averaging=2, preprocess="none", forget_bias=0.0, output_scale=1.0
    )
    weight, bias = torch.zeros(3, 4, 2).double(), torch.zeros(4, 2).double()
    weight[0, 0] = torch.tensor([1.0, -1.0])  # input gates
    weight[0, 3] = torch.tensor([1.0, -1.0])  # candidates
    bias[1], bias[2] = -50.0, 50.0  # forget all, show all
    readout = torch.full((2, 1), 2.0).double()
    return rule, {
        "lstm.0.weight": weight.flatten(1),
        "lstm.0.bias": bias.flatten(),
        "linear.weight": readout,
        "linear.bias": torch.zeros(1).double(),
    }


def test_the_mean_square_gradient_reaches_all_coordinates(kit):
    """What L2 clipping needs (appendix D): the norm, at every coordinate, of each problem its own."""
    rule, meta = _squaring(kit)
    gradients = torch.randn(1, 3, 10, generator=generator(0)).double() * torch.tensor(
        [[0.01], [0.02], [0.03]]
    )
    steps = kit.follow(rule, meta, torch.zeros(3, 10).double(), gradients, LAYOUT).params["theta"]
    expected = gradients[0].square().mean(1, keepdim=True).expand(3, 10)
    torch.testing.assert_close(steps, expected, rtol=2e-3, atol=0)


def test_what_was_averaged_comes_back_to_its_own_layer_and_goes_to_the_next(kit):
    """Against the plain LSTM whose state and layer input are averaged by hand, step by step."""
    rule = kit.build_rule("lstm", hidden=3, averaging=2)
    plain = rule.network._replace(averaging=0, layers=1)
    meta = kit.moved(rule)
    layers = [
        {key.replace(f"lstm.{layer}", "lstm.0"): meta[key] for key in meta if f".{1 - layer}." not in key}
        for layer in (0, 1)
    ]
    states = [plain.state(5, meta["linear.bias"]) for _ in layers]
    found = rule.network.state(5, meta["linear.bias"])
    for step in range(3):
        seen = torch.randn(5, 2, generator=generator(step)).double()
        output, found = rule.network.apply(meta, seen, found, 1)
        for layer, weights in enumerate(layers):
            seen, states[layer] = plain.advance(weights, seen, states[layer])
            seen = torch.cat([seen[:, :2].mean(0).expand(5, 2), seen[:, 2:]], 1)
            states[layer]["hidden.0"] = seen
        torch.testing.assert_close(output, (seen @ meta["linear.weight"] + meta["linear.bias"]).squeeze(1))


@pytest.mark.parametrize("name", ["lstm", "ntm_bfgs"])
def test_more_averaging_cells_than_units_are_refused(kit, name):
    with pytest.raises(UserError, match=r"rule\.averaging: got 5 of rule\.hidden=4"):
        kit.build_rule(name, hidden=4, averaging=5)
