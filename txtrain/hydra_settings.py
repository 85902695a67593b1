"""Hydra's own settings: the few that have an effect here, and none by which a file could have code run.

Hydra instantiates `hydra.callbacks`, launchers and sweepers, and hands `hydra.job_logging` to Python's logging, which
calls what it names. Files of `--config-dir` may set all of these, so they are looked at before Hydra acts on them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from txtrain.errors import UserError
from txtrain.trust import TRUST, is_trusted, nodes, trust_it

# What has an effect, by its beginning; the rest of `hydra.` and `hydra/` has none.
EFFECTIVE = ("sweep.dir", "launcher", "sweeper", "searchpath", "mode", "verbose")
NO_LOGGING = {"version": 1, "root": None, "disable_existing_loggers": False}
# The values of all else that a file may set, and what to type instead.
FIXED: dict[str, tuple[Any, str]] = {
    "run.dir": (".", "type run_dir=PATH"),
    "output_subdir": (None, "a run's folder has its config.yaml and overrides.txt"),
    "job.chdir": (None, "change to the folder before you type the command"),
    "job.env_set": ({}, "set variables before the command: NAME=VALUE python train.py"),
    "job.env_copy": ([], "all variables are copied"),
    "sweep.subdir": (
        "${hydra:job.num}",
        "jobs are numbered folders of the sweep, which hydra.sweep.dir=PATH moves",
    ),
    "callbacks": ({}, "leave it out"),
    "job_logging": (NO_LOGGING, "a run's folder has its train.log"),
    "hydra_logging": (NO_LOGGING, "a run's folder has its train.log"),
}


@contextmanager
def checked_settings(typed: Sequence[str], *, more_files: bool) -> Iterator[None]:
    """While Hydra runs: every config that it composes is checked before it is acted on.

    Args:
        typed: the overrides of the command line.
        more_files: whether files that are not in conf/ are read.

    Raises:
        UserError: a setting has no effect here, or would run code.
    """
    check_typed(typed)
    load, read_mode = ConfigLoaderImpl.load_configuration, Hydra.get_mode

    def load_checked(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        config = load(self, *args, **kwargs)
        given = {*typed, *kwargs.get("overrides", args[1:2] and args[1])}
        found = OmegaConf.to_container(config.hydra.overrides, resolve=False)
        if not given.issuperset(word for words in found.values() for word in words):
            raise UserError("hydra.overrides is set in a file, which would type for the user: leave it out")
        check_settings(config, typed)
        if kwargs.get("run_mode") == RunMode.MULTIRUN:
            check_sweeps(config, typed)
        return config

    def known_mode(self: Hydra, config_name: str, overrides: list[str]) -> Any:
        # Hydra composes the whole config once more for this one setting, half a second, and no file of conf/ has it.
        if not more_files and not any("hydra" in word for word in typed):
            return None
        settings = {"run_mode": RunMode.MULTIRUN, "validate_sweep_overrides": False}
        with suppress(Exception):  # told when the config is composed for its mode
            return load(self.config_loader, config_name, overrides, **settings).hydra.mode

    ConfigLoaderImpl.load_configuration, Hydra.get_mode = load_checked, known_mode
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration, Hydra.get_mode = load, read_mode


def check_typed(typed: Sequence[str]) -> None:
    """Refuses overrides of Hydra's settings that would change nothing."""
    for override in typed:
        key = override.partition("=")[0].lstrip("+~")
        if key.startswith(("hydra.", "hydra/")) and not key[6:].startswith(EFFECTIVE):
            name = key[6:].replace("/", ".")
            do = next((do for fixed, (_, do) in FIXED.items() if f"{name}.".startswith(f"{fixed}.")), "leave it out")
            raise UserError(f"{key} has no effect here: {do}")


def check_settings(config: DictConfig, typed: Sequence[str]) -> None:
    """Refuses settings, wherever they come from, by which Hydra would call what txtrain does not know."""
    settings = config.hydra
    for key, (value, do) in FIXED.items():
        node = settings
        for part in key.split("."):
            node = node._get_node(part)
        found = OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node._value()
        if found != value and not (key == "job.chdir" and found is False):
            raise UserError(f"hydra.{key} has no effect here: {do}")
    known = set(_registered(ConfigStore.instance().repo["hydra"]))
    for key in ("launcher", "sweeper"):
        for path, node in nodes(_resolved(settings, key), f"hydra.{key}"):
            if not isinstance(node["_target_"], str) or not (node["_target_"] in known or is_trusted(node["_target_"])):
                raise UserError(f"{path}._target_ is {node['_target_']}, which no plugin has: leave it out")
    extender = settings.sweeper.get("custom_search_space")
    if extender is not None and not is_trusted(str(extender)):
        raise UserError(f"hydra.sweeper.custom_search_space calls {extender}: {trust_it(str(extender))}")
    for key in ("setup", "additional_parameters"):  # lines of a shell script
        if settings.launcher.get(key) and not any(f"hydra.launcher.{key}" in override for override in typed):
            raise UserError(f"hydra.launcher.{key} is set in a file, and runs as shell: type it on the command line")
    for key in settings.sweeper.get("params") or {}:
        if TRUST.match(f"{key}=") or str(key).lstrip("+~").startswith("hydra"):
            raise UserError(f"hydra.sweeper.params has {key}, which is no key of a run: leave it out")


def _resolved(settings: DictConfig, key: str) -> Any:
    """A setting as Hydra will see it."""
    try:
        return OmegaConf.to_container(settings[key], resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"hydra.{key} cannot be resolved ({reason}): type its values") from error


def _registered(repository: Mapping[str, Any]) -> Iterator[str]:
    """The classes of launchers, sweepers and samplers that installed plugins have registered."""
    for value in repository.values():
        if isinstance(value, Mapping) and not OmegaConf.is_config(value):
            yield from _registered(value)
        elif OmegaConf.is_dict(getattr(value, "node", None)):
            for _, node in nodes(OmegaConf.to_container(value.node, resolve=False)):
                yield str(node["_target_"])


def check_sweeps(config: DictConfig, typed: Sequence[str]) -> None:
    """Refuses -m where nothing has several values."""
    parsed = OverridesParser.create().parse_overrides(list(typed))
    if not any(override.is_sweep_override() for override in parsed) and not config.hydra.sweeper.get("params"):
        raise UserError("-m has nothing to sweep over: give a key several values, such as seed=1,2, or leave out -m")
