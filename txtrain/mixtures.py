"""Mixtures of data sets in command lines and configs: `data.sets.NAME=OPTION`, and keys that are for all sets."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from txtrain.config import unknown_key
from txtrain.errors import UserError
from txtrain.schema import arguments
from txtrain.trust import locate

NAME = r"[A-Za-z][\w-]*"  # of a set
NAMING = "names of sets are letters, digits, _ and -, and begin with a letter, such as data.sets.code=text"
TARGET = "txtrain.data.mixture.Mixture"
BATCHES = ("batch_size", "micro_batch_size", "num_workers", "cache_dir")  # of the mixture, not of its sets
OWN = ("_target_", "_partial_", "sets", "weights", *BATCHES)

_OPTION = re.compile(r"\+?data\.sets\.(?P<name>[^.=]+)=(?P<option>[^{].*)?$")
_KEY_OF_SET = re.compile(r"\+{0,2}data\.sets\.(?P<name>[^.=]+)\.(?P<key>[^=]+)=")
_KEY = re.compile(r"\+{0,2}data\.(?P<key>[^.=]+)[.=]")


def for_hydra(overrides: Sequence[str]) -> list[str]:
    """A command line as Hydra takes it: each set is a choice of the group `data`, placed under `data.sets`.

    Raises:
        UserError: it gives a set what is the mixture's, or there is no mixture.
    """
    keys = [(override, match) for override in overrides if (match := _KEY_OF_SET.match(override))]
    chosen = {match["name"] for override in overrides if (match := _OPTION.match(override))}
    first = next((override for override in overrides if _OPTION.match(override)), None)
    mixes = "data=mixture" in overrides
    if first and not mixes and not any(override.startswith(("experiment=", "+experiment=")) for override in overrides):
        raise UserError(f"{first} is for a mixture of data sets: type data=mixture too")
    for override in overrides:
        if (match := _OPTION.match(override)) and not re.fullmatch(NAME, match["name"]):
            raise UserError(f"{override}: {NAMING}")
        if match and match["option"] == "mixture":
            raise UserError(f"{override}: a set is no mixture itself, name the sets of it beside the others")
    shared = {match["key"] for override in overrides if (match := _KEY.match(override))}
    for override, match in keys:
        name, key = match["name"], match["key"].partition(".")[0]
        if mixes and name not in chosen:
            raise UserError(
                f"{override} is of a set {name} that the mixture has not: type data.sets.{name}=OPTION, an option of "
                "data (the name of a set has no dots)"
            )
        if key in BATCHES:
            raise UserError(f"{override} is for the whole mixture: type data.{key}=VALUE")
        if key in shared:
            raise UserError(f"{override} and data.{key} contradict each other: leave out one of them")
    return [_rewritten(override, mixes) for override in overrides]


def _rewritten(override: str, mixes: bool) -> str:
    if match := _OPTION.match(override):
        return f"+data@data.sets.{match['name']}={match['option'] or ''}"
    key = _KEY.match(override)
    if key is None or key["key"] == "sets" or not (key["key"] == "weights" or (mixes and key["key"] not in OWN)):
        return override
    return "++" + override.lstrip("+")


def as_typed(override: str) -> str:
    """The inverse of `for_hydra`, for one override."""
    return re.sub(r"^\+data@(?=data\.sets\.)|^\+\+(?=data\.)", "", override)


def spread(config: DictConfig) -> None:
    """Gives each set of a mixture what is said of all, and the mixture what its sets agree on and others ask for.

    Raises:
        UserError: a key is none of any set, or sets differ in one that must be the same in all.
    """
    data = config.get("data")
    if not isinstance(data, DictConfig) or data.get("_target_") != TARGET or not isinstance(data.sets, DictConfig):
        return
    sets = {name: node for name, node in data.sets.items() if isinstance(node, DictConfig) and "_target_" in node}
    if not sets:
        return
    classes = {name: locate(f"data.sets.{name}", node) for name, node in sets.items()}
    taken = {name: arguments(found)[0] for name, found in classes.items()}
    for key in [key for key in data if key not in OWN]:
        takers = [name for name in sets if key in taken[name]]
        if not takers:
            raise UserError(unknown_key(f"data.{key}", dict.fromkeys(key for keys in taken.values() for key in keys)))
        for name in takers:
            _put(sets[name], key, data._get_node(key))
    first = next(iter(sets))
    for key in ("batch_size", "num_workers"):
        if data[key] is None and sets[first].get(key) is not None:
            _put(data, key, sets[first]._get_node(key))
    for key in BATCHES:
        for node in sets.values():
            if key in node:
                _put(node, key, data._get_node(key))
    for key in classes[first].alike:
        values = {
            name: node[key]
            for name, node in sets.items()
            if key in node and classes[name].alike == classes[first].alike
        }
        differing = next((name for name, value in values.items() if value != values[first]), None)
        if differing:
            raise UserError(unlike(key, {name: values[name] for name in (first, differing)}))
        if key not in data and len(values) == len(sets):
            _put(data, key, sets[first]._get_node(key))


def unlike(key: str, values: Mapping[str, Any]) -> str:
    """What to say of two sets, by name, that differ in a key which must be the same in both."""
    (one, mine), (other, theirs) = values.items()
    return f"data.sets.{one}.{key} is {mine} and data.sets.{other}.{key} is {theirs}: set data.{key} for both"


def _put(node: DictConfig, key: str, value: Any) -> None:
    plain = OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value._value()
    OmegaConf.update(node, key, plain, merge=False, force_add=True)
