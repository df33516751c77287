"""Options from other packages: by METALEARN_PLUGINS, by an entry point, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from metalearn import compose, plugins, registry
from metalearn.cli import register_all
from metalearn.registry import UserError

PACKAGE = """
from dataclasses import dataclass
from metalearn.config import number, required
from metalearn.registry import register

@register("network", "{name}", "elsewhere.nowhere:Nothing")
@dataclass
class Options:
    \"\"\"of another package\"\"\"

    name: str = required()
    width: int = number(at_least=1)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes an importable package `elsewhere` with one network and a recipe; forgotten afterwards."""

    def write(name: str = "foreign") -> Path:
        folder = tmp_path / "elsewhere"
        for group in ("network", "recipe/elsewhere"):
            (folder / "conf" / group).mkdir(parents=True)
        (folder / "__init__.py").write_text(PACKAGE.format(name=name))
        (folder / "conf/network/foreign.yaml").write_text("# ours\nname: foreign\nwidth: 3\n")
        (folder / "conf/network/mlp.yaml").write_text("name: mlp\nhidden: [99]\n")
        recipe = "# @package _global_\n# a recipe from elsewhere\ndefaults: [override /network: foreign]\n"
        (folder / "conf/recipe/elsewhere/one.yaml").write_text(recipe)
        monkeypatch.syspath_prepend(tmp_path)
        return folder

    register_all()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    yield write
    sys.modules.pop("elsewhere", None)
    plugins._installed.cache_clear()


def test_options_of_a_named_package_stand_beside_ours(package, monkeypatch, metalearn):
    package()
    assert "foreign" not in compose.options("network")
    monkeypatch.setenv(plugins.VARIABLE, "elsewhere")
    assert "foreign of another package" in " ".join(metalearn("list", "networks")[1].split())
    assert "elsewhere/one a recipe from elsewhere" in " ".join(metalearn("list", "recipes")[1].split())
    assert compose.compose(["recipe=elsewhere/one", "network.width=5"]).network.width == 5
    assert compose.compose(["network=mlp"]).network.hidden == [20]  # ours comes first
    code, _, err = metalearn("train", "recipe=elsewhere/one", "network.width=0")
    assert (code, err) == (2, "metalearn: network.width: got 0, must be at least 1\n")


def test_an_installed_package_needs_no_variable(package, monkeypatch):
    folder = package()
    assert plugins.names() == []
    described = folder.parent / "elsewhere-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[metalearn.plugins]\nany = elsewhere\n")
    plugins._installed.cache_clear()
    assert plugins.names() == ["elsewhere"]
    monkeypatch.setenv(plugins.VARIABLE, " elsewhere,")
    assert plugins.names() == ["elsewhere"]
    assert plugins.folders() == [folder / "conf"]


def test_what_cannot_be_used_is_said(package, monkeypatch, metalearn):
    monkeypatch.setenv(plugins.VARIABLE, "elsewhere")
    code, _, err = metalearn("list", "networks")
    assert code == 2
    assert "the plugin 'elsewhere' cannot be imported (No module named 'elsewhere'); put the folder" in err
    package("mlp")
    with pytest.raises(UserError, match="network mlp is registered twice; give its option another name"):
        register_all()


def test_nothing_heavy_is_imported():
    """`metalearn list` and configuration errors stay fast."""
    script = (
        "import sys, metalearn.plugins as p; p.load(); sys.exit(bool({'torch', 'hydra'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
