"""What is typed to leave out a key or a group, and names that are no texts: one line each, for every key there is."""

from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf

from txtrain.cli import configure
from txtrain.compose import compose
from txtrain.config import config_directory, groups
from txtrain.errors import UserError


def configured(*overrides: str) -> None:
    composed = compose(overrides)
    assert composed.config is not None
    configure(composed.config, composed.overrides)


def refused(*overrides: str) -> str:
    """The line that says so."""
    with pytest.raises(UserError) as told:
        configured(*overrides)
    return str(told.value)


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    """All dotted keys of a plain config."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from keys(value, f"{prefix}{key}.")


@pytest.mark.parametrize("options", [[], ["task=translation", "data=catalogues"], ["task=image_classification"]])
def test_no_key_and_no_group_can_be_left_out(options):
    composed = compose(options).config
    assert composed is not None
    found = list(keys(OmegaConf.to_container(composed)))
    assert set(groups(config_directory())) - {"experiment"} <= set(found) and "trainer.max_steps" in found
    for key in found:
        kind = "group" if key in groups(config_directory()) else "key"
        assert f"~{key} leaves out a {kind} that every run has" in refused(*options, f"~{key}")


@pytest.mark.parametrize("typed", ["~model=nano", "~norm=post", "~nothing", "~hydra", "~hydra/launcher"])
def test_other_ways_to_leave_something_out_are_one_line(typed):
    assert typed.lstrip("~").partition("=")[0].replace("/", ".") in refused(typed)


@pytest.mark.parametrize("key", ["name", "run_dir", "resume", "init_from", "seed", "norm.eps", "trainer.max_steps"])
def test_a_variable_that_is_not_set_is_named(key, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    assert refused(f"{key}=${{oc.env:NOT_SET}}").startswith(f"{key} cannot be resolved")


@pytest.mark.parametrize("value", ["2024", "1.5", "true", "null", "[a]", "{a: 1}", "''", ".", "a/../b"])
def test_a_name_is_a_text(value):
    assert "name" in refused(f"name={value}")


@pytest.mark.parametrize("key", ["run_dir", "resume", "init_from"])
@pytest.mark.parametrize("value", ["5", "[a]", "{a: 1}", "true"])
def test_a_path_is_a_text(key, value):
    assert key in refused(f"{key}={value}")
