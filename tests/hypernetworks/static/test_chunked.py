"""Chunks of all parameters laid end to end, against the same network in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from metalearn.hypernetworks.static.chunked import Chunked
from metalearn.hypernetworks.static.hypernetize import hypernetize
from metalearn.tree import count


def _generator(options) -> Chunked:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)).double()
    generator = hypernetize(module, options, lambda _: True).generator
    assert isinstance(generator, Chunked)
    for parameter in generator.parameters():
        nn.init.normal_(parameter)
    return generator


def _numpy(tensor):
    return tensor.detach().numpy()


@pytest.mark.parametrize("layer_embedding", [0, 2])
@pytest.mark.parametrize("conditions", [1, 3])
def test_parameters_are_cut_from_the_chunks(generator_options, layer_embedding, conditions):
    generator = _generator(generator_options("chunked", conditions, layer_embedding=layer_embedding, size=20))
    first, last = generator.layers[0], generator.layers[-1]
    made, chunk = generator(conditions - 1), 0
    chunks = []
    for place, target in enumerate(generator.targets):
        wanted = -(-target.shape.numel() // 20) if layer_embedding else 0
        chunks += [place] * wanted
    chunks = chunks or [0] * len(generator.chunk_embeddings)
    flat = []
    for chunk, layer in enumerate(chunks):
        x = _numpy(generator.chunk_embeddings[chunk])
        if layer_embedding:
            x = np.concatenate([x, _numpy(generator.layer_embeddings[layer])])
        if conditions > 1:
            x = np.concatenate([x, _numpy(generator.condition_embeddings[conditions - 1])])
        hidden = np.maximum(_numpy(first.weight) @ x + _numpy(first.bias), 0)
        flat.append(_numpy(last.weight) @ hidden + _numpy(last.bias))
    start = 0
    for place, target in enumerate(generator.targets):
        numbers = np.concatenate(flat)[start : start + target.shape.numel()].reshape(target.shape)
        expected = generator.means[place].item() + generator.scales[place].item() * numbers
        np.testing.assert_allclose(_numpy(made[target.name]), expected, rtol=1e-10, atol=1e-12)
        start += -(-numbers.size // 20) * 20 if layer_embedding else numbers.size


def test_few_parameters_make_many(generator_options):
    module = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 64, 3))
    ordinary = count(module.parameters())
    options = generator_options("chunked", size=500, embedding=8, hidden=[8], rank=4)
    generator = hypernetize(module, options, lambda _: True).generator
    assert count(generator()) == ordinary == 23_136
    assert count(generator.parameters()) == 47 * 8 + (8 * 8 + 8) + 8 * 4 + (4 * 500 + 500)
