"""Hydra's part: a command line becomes a config, or a sweep, or one line that says what is wrong with it."""

import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from txtrain.compare.sweep import Sweep
from txtrain.config import SCALARS, config_directory, groups, options, unknown_key
from txtrain.errors import UserError
from txtrain.grammar import MEANINGS, check_grammar, for_shell, meaning, unreadable
from txtrain.hydra_settings import checked_settings
from txtrain.mixtures import TARGET as MIXTURE
from txtrain.mixtures import as_typed, for_hydra, spread
from txtrain.schema import nearest

# Lightning's callbacks that a run has by another name (docs/callbacks.md).
_AVERAGE, _SHOWN = "type ema.decay=0.999 instead", "leave it out, since it is always there"
ELSEWHERE = {
    "timer": "type trainer.max_time=10min instead",
    "stochasticweightaveraging": _AVERAGE,
    "swa": _AVERAGE,
    "emaweightaveraging": _AVERAGE,
    "weightaveraging": _AVERAGE,
    "modelcheckpoint": "type save.every=100 or save.best=loss instead",
    "onexceptioncheckpoint": "type save.every=100 instead",
    "gradientaccumulationscheduler": "type data.micro_batch_size=1 instead",
    "spikedetection": "type on_spike=skip instead",
    "richprogressbar": _SHOWN,
    "tqdmprogressbar": _SHOWN,
    "modelsummary": _SHOWN,
    "richmodelsummary": _SHOWN,
    "throughputmonitor": "leave it out, since metrics.jsonl has tokens/s and MFU",
    "devicestatsmonitor": "leave it out, since metrics.jsonl has memory",
}


class Composed:
    """What Hydra calls once it has composed a config: keeps it, so that the run starts after Hydra is done.

    Inside Hydra's call Lightning starts the other ranks by Hydra's rules, and each of them repeats a whole sweep.

    Attributes:
        config: the config of a run, if one is to be started.
        overrides: what the user typed.
        sweep: the jobs that our launcher ran, if the command line was a sweep.
    """

    def __init__(self) -> None:
        self.config: DictConfig | None = None
        self.overrides: list[str] = []
        self.sweep: Sweep | None = None

    def __call__(self, config: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise UserError("hydra/launcher runs the jobs of a sweep in one process: leave it at its default, process")
        self.config = config
        spread(config)
        self.overrides = [*map(as_typed, OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))]


def compose(arguments: Sequence[str]) -> Composed:
    """Let Hydra act on a command line: compose the config of a run, run a sweep (-m), show the config (--cfg job)."""
    directory = config_directory()
    composed = Composed()
    command_line = sys.argv
    sys.argv = [sys.argv[0], *_flags_first(arguments)]
    flags, typed = split(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them
    try:
        check_grammar(typed, groups(directory), SCALARS)
        with checked_settings(for_hydra(typed), more_files=any(flag.startswith(("--config", "-cd")) for flag in flags)):
            hydra.main(config_path=str(directory), config_name="train", version_base="1.3")(composed)()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(explain(error, directory, arguments)) from error
    except (ValueError, TypeError) as error:
        if str(error).startswith(("Config group override", "argument of type '")):
            raise UserError(_not_a_name(arguments, directory)) from error
        if str(error).startswith(("Only one of --", "The --resolve flag")):
            raise UserError(str(error)) from error
        raise
    finally:
        sys.argv = command_line
        if composed.sweep:
            composed.sweep.discard_unused()
    return composed


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The flags of a command line (and their values), and its overrides."""
    overrides = [argument for argument in arguments if re.match(r"[^-][^=]*=|~", argument)]
    return [argument for argument in arguments if argument not in overrides], overrides


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """The same arguments as Hydra's parser can read them, which takes no overrides on both sides of a flag."""
    flags, overrides = split(arguments)
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        known, unknown = parser.parse_known_args(flags)
    except ArgumentError as error:
        raise UserError(f"{error}: see --help") from error
    if unknown:
        name, _, value = unknown[0].lstrip("-").replace("-", "_").partition("=")
        typed = f"{MEANINGS.get(name, name)}={value or 'VALUE'}" if value or name in MEANINGS else "norm=pre"
        swept = "; in a sweep of W&B the command ends with ${args_no_hyphens}" if value else ""
        raise UserError(
            f"{unknown[0]} is no flag: options are typed without dashes, such as {typed}{swept} (see --help)"
        )
    for name, flag in (("config_name", "--config-name"), ("config_path", "--config-path")):
        if getattr(known, name) is not None:
            raise UserError(
                f"{flag}={getattr(known, name)} is not taken, since the config is always train.yaml: write recipes as "
                "DIR/experiment/NAME.yaml and type --config-dir DIR experiment=NAME"
            )
    if known.experimental_rerun is not None:
        raise UserError("--experimental-rerun reads a pickle, which can run any code: type resume=RUN")
    return flags + for_hydra(overrides)


def explain(error: Exception, directory: Path, arguments: Sequence[str] = ()) -> str:
    """One of Hydra's errors about a command line in one line: what, got, do."""
    text, cause = str(error), error.__cause__
    if match := re.match(r"Multiple values for data@(data\.sets\.\w+)", text):
        return (
            f"{match[1]} is a set of the experiment: give another one another name, or write an experiment of your own"
        )
    if isinstance(error, OverrideParseException):
        return unreadable(as_typed(error.override))
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        typed = next(
            (word for word in arguments if re.fullmatch(rf"\+?data\.sets\.[^.=]+={re.escape(option)}", word)), ""
        )
        return _unknown_option(typed.lstrip("+").partition("=")[0] or group, option, error.options or [])
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and (
        match := re.match("Could not override '(.+)'", text)
    ):
        typed = next((word for word in arguments if word.startswith(f"{match[1]}=")), "")
        return _unknown_path(match[1], cause.parent_node, directory, typed.partition("=")[2])
    if match := re.match("Ambiguous value for argument '(.+?)=(.+)'", text):
        told = f"{match[1]} has several values: add -m to sweep over them, or type {match[1]}=[{match[2]}] for a list"
        return told + (f", or {for_shell(match[1], match[2])} for one text" if Path(match[2]).exists() else "")
    if match := re.match("Sweep parameters '(.+)' requires", text):
        return f"{match[1]} has several values: add -m to sweep over them"
    return f"{text} {cause or ''}"


def _unknown_option(group: str, option: str, names: Sequence[str]) -> str:
    if (group, option) == ("hydra/sweeper", "optuna"):
        return "hydra/sweeper=optuna needs a package that is not installed: type pip install 'txtrain[optuna]'"
    if group == "callbacks" and (instead := ELSEWHERE.get(option.replace("_", "").lower())):
        return f"callbacks={option} has another place: {instead}"
    near = nearest(option, names)
    do = f" (did you mean {group}={near}?)" if near else ""
    return f"{group}={option} does not exist{do}: {group} is one of {', '.join(names)}"


def _not_a_name(arguments: Sequence[str], directory: Path) -> str:
    """For a group that was given a number or null."""
    for argument in arguments:
        group, _, option = argument.lstrip("+").partition("=")
        if group in groups(directory) and option not in (names := options(directory, group)):
            return _unknown_option(group, option, names)
    return "a group takes the name of one of its options (see --help)"


def _unknown_path(path: str, parent: Any, directory: Path, value: str = "") -> str:
    """For a key that the composed config lacks: where it is, or what it was meant to be."""
    group, _, key = path.partition(".")
    if group == "data" and key.startswith("sets."):
        name = key.split(".")[1]
        return (
            f"{path} is no key of a set of the data: type data=mixture data.sets.{name}=OPTION, and keys of that option"
        )
    if parent.get("_target_") == MIXTURE:
        return f"{path} is no key of this mixture: type +{path}=VALUE to set it for all its sets"
    elsewhere = [f"{group}={option}" for option in _options_with(key, directory / group)]
    if elsewhere:
        return f"{path} is no key of the chosen option: type {' or '.join(elsewhere)} to use it"
    paths = [*groups(directory), *_paths(OmegaConf.to_container(parent._get_root()))]
    if (synonym := meaning(path, paths)) and synonym != path:
        return f"{path} is no key of this config: type {synonym}={value or 'VALUE'}"
    meant = [candidate for candidate in paths if candidate.endswith(f".{path.rpartition('.')[2]}")][:3]
    if not meant and (near := nearest(path, paths)):
        meant = [near]
    if meant:
        return f"{path} is no key of this config: did you mean {' or '.join(meant)}?"
    return unknown_key(path, [str(name) for name in parent if not str(name).startswith("_")])


def _options_with(key: str, group: Path) -> list[str]:
    return [file.stem for file in sorted(group.glob("*.yaml")) if key in (yaml.safe_load(file.read_text()) or {})]


def _paths(config: Any, prefix: str = "") -> Iterator[str]:
    """All dotted keys of a composed config but Hydra's own."""
    for key, value in config.items():
        if key != "hydra" and not key.startswith("_"):
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from _paths(value, f"{prefix}{key}.")
