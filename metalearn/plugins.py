"""Options of other packages: their names beside ours, their conf/ beside ours.

A plugin is an importable package that registers options when it is imported and may hold a folder conf/ like
ours. It is named by the variable METALEARN_PLUGINS (packages with commas between them) or, where it is
installed, by an entry point of the group `metalearn.plugins`. Imports no torch.
"""

import functools
import importlib
import importlib.metadata
import os
import sys
from pathlib import Path
from types import ModuleType

from metalearn.registry import UserError

VARIABLE = "METALEARN_PLUGINS"
ENTRY_POINTS = "metalearn.plugins"


def names() -> list[str]:
    """The packages that are named, each once: the variable's first."""
    named = [name.strip() for name in os.environ.get(VARIABLE, "").split(",")]
    return [name for name in dict.fromkeys([*named, *_installed(tuple(sys.path))]) if name]


@functools.cache
def _installed(path: tuple[str, ...]) -> list[str]:  # noqa: ARG001
    """The entry points of what is installed on a search path; looking takes 40 ms, so it is done once."""
    return [point.value for point in importlib.metadata.entry_points(group=ENTRY_POINTS)]


def load() -> list[ModuleType]:
    """Import every plugin, which registers its options. Raises UserError."""
    return [_imported(name) for name in names()]


def folders() -> list[Path]:
    """The conf/ of each plugin that has one. Raises UserError."""
    beside = (Path(module.__file__).parent / "conf" for module in load() if module.__file__)
    return [path for path in beside if path.is_dir()]


def open_search_path() -> None:
    """From here on Hydra looks into the plugins' folders after ours."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class PluginFolders(SearchPathPlugin):
        """The folders as they are when a configuration is composed."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            for folder in folders():
                search_path.append("metalearn.plugins", f"file://{folder}")

    known = {kind.__name__ for kind in Plugins.instance().discover(SearchPathPlugin)}
    if PluginFolders.__name__ not in known:
        Plugins.instance().register(PluginFolders)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{VARIABLE}: the plugin {name!r} cannot be imported ({error}); put the folder that holds it on "
            "PYTHONPATH, install it, or leave it out"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{VARIABLE}: the plugin {name!r} is refused: {error}; give its option another name"
        ) from error
