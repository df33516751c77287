"""Randomness is a function of its key, in every process."""

import subprocess
import sys

import pytest
import torch

from metalearn.rng import generator, seed_of, seeded


@pytest.mark.slow
def test_a_key_names_one_stream_in_every_process():
    code = "from metalearn.rng import seed_of; print(seed_of('train', 3, 'a'))"
    salt = {"PYTHONHASHSEED": "1"}  # this process has a random one
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=salt)
    assert int(ran.stdout) == seed_of("train", 3, "a")


def test_keys_do_not_run_into_each_other():
    keys = [("a", "bc"), ("ab", "c"), ("1",), (1,), (11,), (1, 1), ("a",), ()]
    assert len({seed_of(*key) for key in keys}) == len(keys)


def test_seeded_block_repeats_and_leaves_no_trace():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with seeded("mask", 1):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded("mask", 1):
        assert torch.equal(torch.rand(4), first)
    with seeded("mask", 2):
        assert not torch.equal(torch.rand(4), first)


def test_generator_repeats():
    assert torch.equal(torch.rand(3, generator=generator(0, "x")), torch.rand(3, generator=generator(0, "x")))
