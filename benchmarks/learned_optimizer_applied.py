"""Learned optimizers at work on a user's network: one step of each rule beside torch's Adam (foreach).

A perceptron 784-700-700-10 of 1,047,910 parameters with gradients that are there already; rules as conf/rule
has them, fresh. `uv run python -m benchmarks.learned_optimizer_applied [RULE...] [--save]`.
"""

import itertools
import sys
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.measure import measure, report
from metalearn.cli import register_all
from metalearn.compose import compose
from metalearn.learned_optimizers.torch_optimizer import LearnedOptimizer
from metalearn.machine import Machine
from metalearn.registry import build, names
from metalearn.rng import generator

CALLS = 3  # steps of a sample


def network() -> nn.Module:
    sizes = [784, 700, 700, 10]
    layers = [nn.Linear(before, after) for before, after in itertools.pairwise(sizes)]
    for layer in layers:
        for leaf in layer.parameters():
            leaf.grad = 1e-3 * torch.randn(leaf.shape, generator=generator("gradient", *leaf.shape))
    return nn.Sequential(*layers)


def steps(optimizer: torch.optim.Optimizer, calls: int = CALLS) -> Callable[[], object]:
    def run() -> None:
        for _ in range(calls):
            optimizer.step()

    return run


def learned(name: str) -> tuple[str, Callable[[], object]]:
    """A rule and what it remembers of a parameter."""
    config = compose(["method=learned_optimizer", "hypergradient=unrolled", f"rule={name}", "machine=cpu"])
    rule = build("rule", config.rule, machine=Machine(config.machine))
    optimizer = LearnedOptimizer(network().named_parameters(), rule, rule.init(generator("rule")))
    return f"{name}, {optimizer.memory_per_parameter:.1f} bytes a parameter", steps(optimizer)


def main() -> None:
    register_all()
    able = [name for name in names("rule") if name != "ntm_bfgs"]  # it refuses so many coordinates
    chosen = [name for name in able if name in sys.argv] or able
    adam = steps(torch.optim.Adam(network().parameters(), 1e-3, foreach=True))
    table = measure({"Adam, foreach, 8 bytes a parameter": adam, **dict(map(learned, chosen))})
    title = f"Learned optimizers applied: {CALLS} steps on 1,047,910 parameters"
    report(title, table, "--save" in sys.argv)


if __name__ == "__main__":
    main()
