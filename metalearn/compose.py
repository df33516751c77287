"""From the yaml files of conf/ and the overrides of a command line to a checked configuration."""

from collections.abc import Sequence
from pathlib import Path

import metalearn.config as config

_here = Path(__file__).resolve().parent

# conf/ lies inside the package in a wheel, and beside it in a checkout or an editable install
CONF = next(path for path in (_here / "conf", _here.parent / "conf") if (path / "config.yaml").exists())


def compose(overrides: Sequence[str] = ()) -> config.Config:
    """The configuration that `metalearn train OVERRIDES` would run. Raises UserError."""
    return config.resolve(compose_raw(overrides))


def compose_raw(overrides: Sequence[str] = ()):  # noqa: ANN201
    """The same before checks, as Hydra's DictConfig, with the `replicate` block of a recipe."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra_compose("config", overrides=list(overrides))
