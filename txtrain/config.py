"""Checks a config, makes what its nodes name, and says what a resumed run may change.

The constructor's signature is the schema and the YAML file gives the values, so a new option needs no entry here.
"""

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from txtrain.durations import max_seconds
from txtrain.errors import UserError
from txtrain.records import RESTORE, read_config
from txtrain.schema import arguments, check_value, nearest
from txtrain.trust import check_partial, check_target, locate, nodes

NODE_KEYS = ("_target_", "_partial_")
MISSING = "???"

EARLIER_LOGGERS = {f"txtrain.logger.{name}": name for name in ("wandb", "tensorboard", "none")}

# The root keys that are no group.
SCALARS: dict[str, Any] = {
    "name": str,
    "seed": int,
    "run_dir": str | None,
    "resume": str | None,
    "init_from": str | None,
    "compile": bool,
    "on_spike": Literal["warn", "skip", "stop"],
    "export": bool,
    "dry_run": bool,
    "trust": list[str],
}

# What a resumed run may change: where and how long it trains, never what it trains.
RESUMABLE = (
    "trainer",
    "strategy",
    "logger",
    "samples",
    "save",
    "callbacks",
    "data.micro_batch_size",
    "data.micro_batch_tokens",
    "schedule.decay",
    "schedule.end",
    "on_spike",
    "export",
    "resume",
    "dry_run",
    "trust",
)

# Of that, how long it trains, which the run remembers: where it trains may be another machine the next time.
LASTING = ("trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "schedule.decay", "schedule.end")


def config_directory() -> Path:
    """The config tree: inside the package in a wheel, beside it in a clone."""
    package = Path(__file__).parent
    packed = package / "conf"
    return packed if packed.is_dir() else package.parent / "conf"


def groups(directory: Path) -> list[str]:
    """The axes, one folder each."""
    return sorted(path.name for path in directory.iterdir() if path.is_dir() and path.name != "hydra")


def options(directory: Path, group: str) -> list[str]:
    """The options of an axis, one file each."""
    return sorted(path.stem for path in (directory / group).glob("*.yaml"))


def to_plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain dicts, lists and values, interpolations resolved."""
    try:
        return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        if missing := re.search(r"Interpolation key '(\w+)\.(\w+)' not found", reason):
            reason = f"it is {missing[1]}.{missing[2]}, which the chosen {missing[1]} has not: choose another"
        raise UserError(f"{error.full_key} cannot be resolved: {reason}") from error


def check_scalars(config: DictConfig) -> None:
    """Refuses values of other types of the keys that are no group, which are needed before all else is checked."""
    for key, kind in SCALARS.items():
        if key in config:
            try:
                value = config[key]
            except OmegaConfBaseException as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"{key} cannot be resolved ({reason}): type {key}=VALUE") from error
            check_value(key, to_plain(value) if OmegaConf.is_config(value) else value, kind)
    if not config.name.strip() or {"", ".", ".."} & set(config.name.split("/")):
        raise UserError(f"name is '{config.name}', the name of a folder in runs/: type name=gpt")


def check(config: Mapping[str, Any], typed: Sequence[str] = ()) -> None:
    """Refuse unknown keys, missing values and wrong types in a plain config, before anything is built from it.

    Args:
        config: of a run.
        typed: the overrides of the command line.
    """
    for key, value in config.items():
        if key in SCALARS:
            check_value(key, value, SCALARS[key])
        elif value != {} and not any(nodes(value)):  # not composed from the config tree but added by +key=value
            raise UserError(unknown_key(key, [name for name in config if name != key]))
    if isinstance(trainer := config.get("trainer"), Mapping):
        max_seconds(trainer.get("max_time"))
    for path, node in nodes(config):
        check_target(path, node)
        check_special(path, node)
        for key in node:
            if node[key] == MISSING:
                raise UserError(f"{path}.{key} is needed and has no default: type {path}.{key}=VALUE")
    # The model's classes first: they import without Lightning, so most mistakes are told in half the time.
    for path, node in sorted(nodes(config), key=lambda item: "txtrain.model." not in str(item[1]["_target_"])):
        _check_node(path, node, typed)


def _check_node(path: str, node: Mapping[str, Any], typed: Sequence[str]) -> None:
    parameters, takes_others = arguments(locate(path, node))
    values = {key: value for key, value in node.items() if key not in NODE_KEYS}
    for key, value in values.items():
        if key not in parameters and not takes_others:
            option = next((override for override in typed if override.startswith(f"{path}=")), None)
            if option and not any(override.lstrip("+").startswith(f"{path}.{key}=") for override in typed):
                raise UserError(f"{option} has no {key}, which other options here set: leave {path} out")
            raise UserError(unknown_key(f"{path}.{key}", parameters))
        if key in parameters and not any(nodes(value)):  # a node within is checked on its own
            check_value(f"{path}.{key}", value, parameters[key].annotation, parameters[key].default)
    if not node.get("_partial_", False):  # code supplies what a partial node lacks
        for key, parameter in parameters.items():
            if parameter.default is parameter.empty and key not in values:
                raise UserError(f"{path}.{key} is missing: type +{path}.{key}=VALUE")


def unknown_key(path: str, names: Iterable[str]) -> str:
    """What to say of a key that is not among the names that its parent has."""
    parent, _, key = path.rpartition(".")
    near = nearest(key, names)
    if near:
        return f"{path} is no key of this config: did you mean {f'{parent}.{near}' if parent else near}?"
    return f"{path} is no key of this config: {parent or 'it'} has {', '.join(names) or 'none'}"


def instantiate(node: Any, path: str) -> Any:
    """What a node of a config makes, and every node within it, out of plain values alone.

    Hydra's own function would resolve interpolations once more, so that an escaped one in a text could become a node
    that nobody has checked.

    Args:
        node: a mapping with a `_target_`, plain or of OmegaConf.
        path: where it is in the config, such as `norm` or `data.sets.code`.

    Raises:
        UserError: it names a class that may not be loaded.
    """
    if OmegaConf.is_config(node):
        node = to_plain(node)
    if isinstance(node, list):
        return [instantiate(value, f"{path}.{index}") for index, value in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    values = {key: instantiate(value, f"{path}.{key}") for key, value in node.items() if key not in NODE_KEYS}
    if "_target_" not in node:
        return values
    check_special(path, node)
    target = locate(path, node)
    return partial(target, **values) if node.get("_partial_") else target(**values)


def instantiate_saved(config: DictConfig, group: str) -> Any:
    """What a group of a run's config makes, which is checked first."""
    node = to_plain(config)[group]
    check({group: node})
    try:
        return instantiate(node, group)
    except ValueError as error:
        raise UserError(f"the run's {group} cannot be ({error}): {RESTORE}") from error


def check_special(path: str, node: Mapping[str, Any]) -> None:
    """Refuses keys that Hydra would act on, such as `_args_` and `_recursive_`."""
    for key in node:
        if not isinstance(key, str) or (key.startswith("_") and key not in NODE_KEYS):
            raise UserError(f"{path}.{key} is no key of this config: leave it out")


def resumable(key: str) -> bool:
    """Whether a resumed run may change this key."""
    return any(f"{key}.".startswith(f"{prefix}.") for prefix in RESUMABLE)


def resume_config(saved: DictConfig, composed: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """The saved config of a run with the allowed overrides on top; what it already says may be repeated.

    Args:
        saved: the run's own config.yaml.
        composed: what the command line would make of a new run.
        overrides: what the user typed.
    """
    keys = {override: override.partition("=")[0].lstrip("+~") for override in overrides}
    allowed = {key for key in keys.values() if resumable(key)}
    result = copy.deepcopy(saved)
    for key in allowed:
        OmegaConf.update(result, key, OmegaConf.select(composed, key), merge=False, force_add=True)

    recipe = [key for key in composed if key not in (*RESUMABLE, "run_dir")]  # an experiment is no key but sets many
    refused = []
    for override, key in keys.items():
        compared = recipe if key == "experiment" else [key]
        if key not in allowed and any(OmegaConf.select(composed, k) != OmegaConf.select(result, k) for k in compared):
            refused.append(override)
    if refused:
        raise UserError(
            f"{', '.join(refused)} would change what the resumed run trains: leave it out or start a new run "
            f"(only {', '.join(RESUMABLE[:-2])} may change)"
        )
    return result


def saved_config(run: Path) -> DictConfig:
    """The config that a run directory holds; its texts are texts, whatever they look like.

    Raises:
        UserError: it cannot be read, or names a class that may not be loaded.
    """
    plain = _with_logger_of_now(read_config(run / "config.yaml"))
    for path, node in nodes(plain):
        check_target(path, node)
        check_partial(path, node)
        check_special(path, node)
    return literal(plain)


def literal(plain: Mapping[str, Any]) -> DictConfig:
    """A plain config as OmegaConf's, in which no text is an interpolation."""
    return OmegaConf.create(_escaped(plain))


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_escaped(inner) for inner in value]
    if isinstance(value, str) and "${" in value:
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def _with_logger_of_now(plain: Mapping[str, Any]) -> Mapping[str, Any]:
    """Each logger had a function of its own before one run could have several."""
    logger = plain.get("logger")
    name = EARLIER_LOGGERS.get(str(logger.get("_target_"))) if isinstance(logger, Mapping) else None
    if not isinstance(logger, Mapping) or name is None:
        return plain
    on = {} if name == "none" else {name: True}
    return {**plain, "logger": {**logger, "_target_": "txtrain.logger.chosen", **on}}


def remembered(saved: DictConfig, config: DictConfig) -> DictConfig:
    """The saved config of a run, with the end of training that a resumed one has."""
    result = copy.deepcopy(saved)
    for key in LASTING:
        if OmegaConf.select(result, key) != OmegaConf.select(config, key):
            OmegaConf.update(result, key, OmegaConf.select(config, key), merge=False, force_add=True)
    return result


def find_run(resume: str, name: str) -> Path:
    """The run directory that `resume` means: that folder, or for auto the one with the newest whole checkpoint."""
    if resume != "auto":
        if not Path(resume, "config.yaml").is_file():
            raise UserError(
                f"resume={resume} is no run directory (it has no config.yaml): name one, or type resume=auto"
            )
        return Path(resume)
    parent = Path("runs", name)
    newest = newest_run(parent)
    if newest is None:
        begun = sorted(parent.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
        do = f"type resume={begun[-1].parent} to start that one anew" if begun else "name one by resume=PATH"
        raise UserError(f"resume=auto finds no run with a whole checkpoint in {parent}: {do}")
    return newest


def newest_run(parent: Path) -> Path | None:
    """The run directory in a folder that has the newest whole checkpoint."""
    # Imports torch, which a mistake in the config need not wait for.
    from txtrain.saving import find_checkpoint, list_checkpoints

    runs = [run for run in parent.glob("*") if Path(run, "config.yaml").is_file()]
    newest = {
        run: max((path.stat().st_mtime for path in list_checkpoints(run / "checkpoints")), default=0) for run in runs
    }
    ordered = sorted(runs, key=newest.__getitem__, reverse=True)
    return next((run for run in ordered if find_checkpoint(run) is not None), None)
