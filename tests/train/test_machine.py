"""The machine's switches reach torch, and a later machine undoes an earlier one's."""

import dataclasses
import os
import warnings

import pytest
import torch

from metalearn.config import MachineOptions
from metalearn.machine import TORCHS_THREADS, Machine
from metalearn.registry import UserError


def machine(**changes) -> Machine:
    plain = {
        "device": "cpu",
        "precision": "fp32",
        "compile": False,
        "fused": True,
        "deterministic": False,
        "threads": 0,
    }
    return Machine(MachineOptions("test", **{**plain, "timeout": 60, **changes}))


@pytest.fixture(autouse=True)
def _torch_as_it_was(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    machine()


def test_auto_takes_what_there_is():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert machine(device="auto").device.type == expected
    assert machine(device="cpu").put(torch.ones(1)).device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_says_what_to_do():
    with pytest.raises(UserError, match="got cuda, but torch sees no CUDA device; use machine=cpu"):
        machine(device="cuda")


def test_threads_of_one_job_do_not_reach_the_next():
    machine(threads=2)
    assert torch.get_num_threads() == 2
    machine(threads=0)
    assert torch.get_num_threads() == TORCHS_THREADS


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_tf32_only_where_asked_for_and_without_warnings(precision):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        machine(precision=precision)
        assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        assert torch.backends.cudnn.allow_tf32 == (precision == "tf32")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_on_the_cpu_only_bf16_changes_a_product(precision):
    a, b = (torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    machine()
    exact = a @ b
    used = machine(precision=precision)
    with used.autocast():
        product = a @ b
    assert product.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    assert torch.equal(product, exact) == (precision != "bf16")


def test_deterministic_is_switched_on_and_off():
    machine(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark
    with pytest.raises(RuntimeError, match="deterministic"):
        torch.ones(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    machine()
    assert not torch.are_deterministic_algorithms_enabled()
    torch.ones(3).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)


def test_a_workspace_that_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    machine(deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


@pytest.mark.slow
def test_compile_is_a_switch():
    def double(x):
        return 2 * x

    assert machine().compile(double) is double
    compiled = machine(compile=True).compile(double)
    assert compiled is not double
    assert compiled._torchdynamo_orig_callable is double


def test_a_guest_leaves_torch_as_it_is():
    options = machine(threads=2, deterministic=True, precision="tf32").options
    Machine(dataclasses.replace(options, threads=1, deterministic=False, precision="fp32"), guest=True)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cuda.matmul.allow_tf32
