"""Trained rules of every kind in a user's program: the whole interface, other processes, compiled models."""

import copy
import io
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F

import metalearn
from metalearn import registry
from metalearn.compose import CONF
from metalearn.config import typed
from metalearn.learned_optimizers import stored
from metalearn.learned_optimizers.torch_optimizer import LearnedOptimizer
from metalearn.machine import Machine
from metalearn.rng import generator, seeded

RULES = registry.names("rule")
X, Y = torch.randn(24, 1, 6, 6, generator=generator("x")), torch.randint(3, (24,), generator=generator("y"))


@pytest.fixture
def stored_rule(tmp_path):
    """A folder with a fresh rule of a name, its options those of conf/."""

    def store(name):
        values = OmegaConf.to_container(OmegaConf.load(CONF / "rule" / f"{name}.yaml"))
        options = typed(registry.entry("rule", name).options, values, "rule.")
        rule = registry.build("rule", options, machine=Machine(stored.GUEST, guest=True))
        stored.save(tmp_path / name, rule, rule.init(generator("meta", name)), {})
        return tmp_path / name

    return store


def model(dtype=torch.float32) -> nn.Sequential:
    with seeded("model"):
        parts = nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)
        return nn.Sequential(*parts).to(dtype)


def train(network, optimizer, steps):
    dtype = next(network.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(X.to(dtype)).float(), Y).backward()
        optimizer.step()


def values(network) -> torch.Tensor:
    return torch.cat([leaf.detach().double().flatten() for leaf in network.parameters()])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_every_rule_resumes_and_is_copied(stored_rule, name, dtype):
    """Three steps, a file or a copy, three steps: as six, bit for bit; and they move every parameter."""
    make, network, resumed = LearnedOptimizer.from_run(stored_rule(name)), model(dtype), model(dtype)
    start = values(network)
    optimizer = make(network.named_parameters(), weight_decay=0.01)
    train(network, optimizer, 3)
    twin, twins = copy.deepcopy((network, optimizer))
    file = io.BytesIO()
    torch.save([network.state_dict(), optimizer.state_dict()], file)
    train(network, optimizer, 3)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    resumed.load_state_dict(weights)
    again = make(resumed.named_parameters())
    again.load_state_dict(state)
    for other, its in ((resumed, again), (twin, twins)):
        train(other, its, 3)
        assert torch.equal(values(network), values(other))
    assert values(network).isfinite().all()
    assert not (values(network) == start).all()


@pytest.mark.parametrize("name", RULES)
def test_every_rule_leaves_a_tensor_without_gradient(stored_rule, name):
    """Its part of every slot that lies by coordinates is that of before, too."""
    make = LearnedOptimizer.from_run(stored_rule(name))
    paused, other = torch.ones(3, 4, requires_grad=True), torch.ones(5, requires_grad=True)
    optimizer = make([paused, other])
    for step in range(3):
        paused.grad = torch.linspace(-1, 1, 12).view(3, 4) if step != 1 else None
        other.grad = torch.ones(5)
        before = paused.detach().clone(), other.detach().clone(), _of(optimizer, slice(0, 12))
        optimizer.step()
        assert torch.equal(paused.detach(), before[0]) == (step == 1)
        assert not torch.equal(other.detach(), before[1])
        if step == 1:
            assert all(map(torch.equal, _of(optimizer, slice(0, 12)), before[2]))


def _slots(optimizer):
    return [leaf for state in optimizer.state.values() for leaf in state.get("slots", {}).values()]


def _of(optimizer, coordinates):
    """Copies of the slots of some of 17 coordinates."""
    leaves = _slots(optimizer)
    return [
        leaf.movedim(leaf.shape.index(17), 0)[coordinates].clone()
        for leaf in leaves
        if leaf.shape.count(17) == 1
    ]


MEMORY = {"adam": 8, "hierarchical": 96, "lstm": 320, "mlp": 16, "rnnprop": 328}  # bytes a parameter


@pytest.mark.parametrize("name", MEMORY)
def test_memory_of_every_rule(stored_rule, name):
    """What the README says: of the options of conf/, in float32."""
    tensors = [torch.ones(40, 50, requires_grad=True), torch.ones(7, requires_grad=True)]
    optimizer = LearnedOptimizer.from_run(stored_rule(name))(tensors)
    assert optimizer.memory_per_parameter == MEMORY[name]
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    held = sum(leaf.nbytes for leaf in _slots(optimizer))
    assert held == pytest.approx(2007 * MEMORY[name], rel=0.03)


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_plain_one(stored_rule):
    make, reached = LearnedOptimizer.from_run(stored_rule("lstm")), []
    for compiled in (False, True):
        network = model()
        seen = torch.compile(network, backend="aot_eager") if compiled else network
        optimizer = make(seen.named_parameters())
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(seen(X), Y).backward()
            optimizer.step()
        reached.append(values(network))
    torch.testing.assert_close(*reached)


@pytest.mark.slow
def test_distributed_checkpoints_hold_it(stored_rule):
    """By the names of parameters, as torch.distributed.checkpoint asks for."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    make = LearnedOptimizer.from_run(stored_rule("lstm"))
    network, resumed = model(), model()
    optimizer, again = make(network.named_parameters()), make(resumed.named_parameters())
    train(network, optimizer, 3)
    state = get_optimizer_state_dict(network, optimizer)
    assert state["state"].keys() == {name for name, _ in network.named_parameters()}
    resumed.load_state_dict(network.state_dict())
    set_optimizer_state_dict(resumed, again, state)
    for each, its in ((network, optimizer), (resumed, again)):
        train(each, its, 3)
    assert torch.equal(values(network), values(resumed))


RESUME = """
    import sys, torch, metalearn
    from torch import nn
    sys.path.insert(0, sys.argv[1])
    from program import model, train
    kept = torch.load(sys.argv[1] + "/kept.pt", weights_only=True)
    network = model()
    network.load_state_dict(kept["model"])
    optimizer = metalearn.LearnedOptimizer.from_run(sys.argv[1] + "/lstm")(network.named_parameters())
    optimizer.load_state_dict(kept["optimizer"])
    train(network, optimizer, 3)
    torch.save(network.state_dict(), sys.argv[1] + "/reached.pt")
"""
PARALLEL = """
    import sys, torch, metalearn
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    sys.path.insert(0, sys.argv[1])
    from program import X, Y, model, train
    dist.init_process_group("gloo")
    rank, network = dist.get_rank(), model()
    wrapped = DistributedDataParallel(network)
    optimizer = metalearn.LearnedOptimizer.from_run(sys.argv[1] + "/lstm")(wrapped.named_parameters())
    train(wrapped, optimizer, 4, slice(rank, None, 2))
    torch.save(network.state_dict(), f"{sys.argv[1]}/reached{rank}.pt")
    dist.destroy_process_group()
"""
PROGRAM = """
    import torch
    from torch import nn
    from torch.nn import functional as F

    X = torch.linspace(-1, 1, 24 * 4).view(24, 4).sin()
    Y = torch.arange(24) % 3

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def train(network, optimizer, steps, rows=slice(None)):
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(network(X[rows]), Y[rows]).backward()
            optimizer.step()
"""


@pytest.fixture
def program(tmp_path, monkeypatch, stored_rule):
    """The functions of PROGRAM, which other processes find beside a stored rule."""
    stored_rule("lstm")
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("program", None)
    import program

    yield program
    del sys.modules["program"]


def _ran(command):
    ran = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_another_process_goes_on_bit_for_bit(tmp_path, program):
    network = program.model()
    optimizer = metalearn.LearnedOptimizer.from_run(tmp_path / "lstm")(network.named_parameters())
    program.train(network, optimizer, 3)
    kept = {"model": network.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(kept, tmp_path / "kept.pt")
    program.train(network, optimizer, 3)
    _ran(["-c", textwrap.dedent(RESUME), str(tmp_path)])
    reached = torch.load(tmp_path / "reached.pt")
    assert all(torch.equal(leaf, reached[name]) for name, leaf in network.state_dict().items())


@pytest.mark.slow
def test_two_processes_of_ddp_stay_equal_and_are_as_one(tmp_path, program):
    """Halves of a batch in two processes are the batch in one."""
    (tmp_path / "parallel.py").write_text(textwrap.dedent(PARALLEL))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    _ran([*launch, str(tmp_path / "parallel.py"), str(tmp_path)])
    first, second = (torch.load(tmp_path / f"reached{rank}.pt") for rank in range(2))
    network = program.model()
    optimizer = metalearn.LearnedOptimizer.from_run(tmp_path / "lstm")(network.named_parameters())
    program.train(network, optimizer, 4)
    for name, leaf in network.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], leaf, rtol=1e-4, atol=1e-6)
