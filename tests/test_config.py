"""Options: everything in conf/ composes, is typed, and belongs to a registered name."""

import pytest
from omegaconf import OmegaConf

from metalearn import cli, registry
from metalearn.compose import CONF, compose, options, recompose
from metalearn.config import resolve
from metalearn.registry import UserError

cli.register_all()


@pytest.mark.parametrize("group", registry.GROUPS)
def test_conf_and_registry_hold_the_same_names(group):
    """Every name has its file; a file of another name is a variant, with other numbers, of one of them."""
    files = {file: OmegaConf.load(CONF / group / f"{file}.yaml").name for file in options(group)}
    assert set(registry.names(group)) <= {file for file, name in files.items() if file == name}
    assert set(files.values()) - {"none"} == set(registry.names(group))


@pytest.mark.slow
@pytest.mark.parametrize("group", registry.GROUPS)
def test_every_option_has_a_value_in_conf(group):
    for name in registry.names(group):
        chosen = getattr(compose([f"{group}={name}"]), group)
        assert [key for key in registry.fields(group, name) if not hasattr(chosen, key)] == []
        assert chosen.name == name


def test_a_yaml_key_that_no_one_reads_is_refused():
    composed = recompose([])
    OmegaConf.set_struct(composed, False)
    composed.task.typo = 3
    with pytest.raises(UserError, match=r"task\.typo: no such option; choose one of"):
        resolve(composed)


def test_the_resolved_configuration_composes_again():
    config = compose(["train.steps=7"])
    again = resolve(OmegaConf.create(OmegaConf.to_container(OmegaConf.structured(config))))
    assert again == config
