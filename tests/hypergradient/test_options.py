"""The estimators as a configuration names them."""

import subprocess
import sys

import pytest
import yaml

import metalearn.hypergradient
from metalearn import registry
from metalearn.compose import CONF
from metalearn.hypergradient.base import HyperGradient

NAMES = [
    "conjugate_gradient", "evolution", "finite_difference", "first_order", "forward", "neumann", "pes",
    "truncated", "unrolled",
]  # fmt: skip


def test_these_are_all():
    assert registry.names("hypergradient") == NAMES


def values(name):
    return yaml.safe_load((CONF / "hypergradient" / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_each_is_built_from_its_yaml(name):
    assert list(values(name)) == registry.fields("hypergradient", name)
    options = registry.entry("hypergradient", name).options(**values(name))
    built = registry.build("hypergradient", options)
    assert isinstance(built, HyperGradient)
    assert type(built).__name__.lower() == name.replace("_", "")


def test_numbers_are_the_papers():
    assert values("finite_difference")["radius"] == 0.01  # DARTS, footnote 2: eps = 0.01 / ||v||
    assert values("truncated")["window"] == 20  # L2L, section 3.1: unrolled for 20 steps


def test_naming_them_needs_no_torch():
    code = f"import sys, {metalearn.hypergradient.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
