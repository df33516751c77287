"""Imports run one way: the table of DESIGN.md, held by the source itself."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = {"tree", "rng", "registry", "config"}
MAY_IMPORT = {  # part: the parts of metalearn that it may import, beside its own
    "tree": set(),
    "rng": set(),
    "kernels": set(),
    "registry": set(),
    "config": {"registry"},
    "plugins": {"registry"},
    "task": CORE,
    "network": CORE | {"task"},
    "processes": CORE,
    "machine": CORE | {"processes"},
    "problem": CORE | {"task"},
    "inner_optimizers": CORE | {"problem"},
    "hypergradient": CORE | {"task", "problem"},
    "method": CORE | {"task", "network", "machine", "problem", "hypergradient"},
    "options": {"config", "registry"},
    "generation": CORE | {"task", "network"},
    "restore": CORE | {"build", "train"},
    "sample": CORE | {"task", "network", "supervised", "build", "restore", "generation"},
    "networks": CORE | {"task", "network", "options"},
    "averaging": CORE,
    "supervised": CORE | {"task", "network", "machine", "method", "options", "averaging"},
    "diagnose": CORE
    | {"train"}
    | {"task", "problem", "machine", "method", "hypergradient", "build", "compose", "records"},
    "unattended": set(),
    "train": CORE | {"machine", "method", "task", "processes", "unattended"},
    "tasks": CORE | {"task"},
}
FAMILY = CORE | {
    "task", "network", "networks", "machine", "problem", "inner_optimizers", "hypergradient", "method",
    "options", "supervised", "processes", "kernels", "generation",
}  # fmt: skip
MAY_IMPORT |= dict.fromkeys(
    ("darts", "hypernetworks", "learned_optimizers", "maml", "hyperparameters"), FAMILY
)
MAY_IMPORT["hypernetworks"] = FAMILY | {"compose"}  # a hypernetwork takes the options of any other network
MAY_IMPORT["learned_optimizers"] = FAMILY | {"compose"}  # a mixture composes its members' configurations
READERS = ("report", "compare", "records")  # they read runs/ only


def _part(path: Path) -> str:
    inside = path.relative_to(ROOT)
    return "tasks" if inside.parts[0] == "tasks" else Path(inside.parts[1]).stem


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {
                f"{node.module}.{alias.name}" for alias in node.names if node.module == "metalearn"
            }
    return found


FILES = sorted(path for folder in ("metalearn", "tasks") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    part = _part(path)
    imported = _imported(path)
    parts = {name.split(".")[1] for name in imported if name.startswith("metalearn.")}
    if part in MAY_IMPORT:
        assert parts <= MAY_IMPORT[part] | {part}
    if part in READERS:
        assert parts <= {"registry", "config", "unattended", *READERS}
        assert not any(name.split(".")[0] == "torch" for name in imported)
    if part not in ("tasks", "cli", "listing"):
        assert not any(name.split(".")[0] == "tasks" for name in imported)


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.name in ("config.py", "options.py", "__init__.py")], ids=str
)
def test_options_import_no_torch(path):
    """Listing names and checking a configuration must answer in a moment."""
    heavy = {"torch", "torchvision", "wandb", "matplotlib", "sklearn", "numpy"}
    assert not heavy & {name.split(".")[0] for name in _imported(path)}
