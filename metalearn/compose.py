"""From the yaml files of conf/ and the overrides of a command line to a checked configuration."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from metalearn import plugins
from metalearn.config import Config, resolve

_here = Path(__file__).resolve().parent

# conf/ lies inside the package in a wheel, and beside it in a checkout or an editable install
CONF = next(path for path in (_here / "conf", _here.parent / "conf") if (path / "config.yaml").exists())


def compose(overrides: Sequence[str] = ()) -> Config:
    """The configuration that `metalearn train OVERRIDES` would run. Raises UserError."""
    return resolve(recompose(overrides))


def recompose(overrides: Sequence[str] = ()) -> DictConfig:
    """The same before checks, with the `replicate` block of a recipe. Raises Hydra's errors.

    `--config-dir RUN` before overrides means the configuration that is stored in that run directory.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    plugins.open_search_path()
    lines, folder, name = list(overrides), CONF, "config"
    if "--config-dir" in lines:
        place = lines.index("--config-dir")
        folder, name = Path(lines[place + 1]).resolve(), "run"
        del lines[place : place + 2]
    with initialize_config_dir(str(folder), version_base="1.3"):
        return hydra_compose(name, overrides=lines)


def options(group: str) -> list[str]:
    """The names that conf/ offers for a group, e.g. every recipe as `folder/name`."""
    places = [root / group for root in roots()]
    return sorted({str(path.relative_to(f).with_suffix("")) for f in places for path in f.rglob("*.yaml")})


def roots() -> list[Path]:
    """The folders of configurations, in the order in which they are looked through: ours, each plugin's."""
    return [CONF, *plugins.folders()]


def file_of(option: str) -> Path:
    """The file of an option, e.g. `task/digits`; in conf/ if no folder has it."""
    found = (root / f"{option}.yaml" for root in roots())
    return next((path for path in found if path.is_file()), CONF / f"{option}.yaml")
