"""Options by the names that are typed: which one a config node is, and what of it differs from its file."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import yaml

from txtrain.config import config_directory, options

SHOWN = 4  # keys of an option that differ from its file


def option_name(group: str, node: Mapping[str, Any]) -> str:
    """The option of a group that a config node is, as one types it, with the keys that differ from its file."""
    name, changes = nearest_option(group, node)
    more = ["…"] if len(changes) > SHOWN else []
    return f"{name} ({', '.join(changes[:SHOWN] + more)})" if changes else name


def nearest_option(group: str, node: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The name of the option that a config node is, and `key=value` of each key that differs from its file.

    Several options may share a class (swiglu, geglu): the nearest by its values is meant. An option that is not in the
    config tree goes by the name of its class.
    """
    name, changes, least = str(node["_target_"]).rpartition(".")[2], list[str](), None
    for option, values in option_files(group).items():
        if values.get("_target_") == node["_target_"]:
            found = list(_changes(values, node))
            cost = sum(1 + (old is None or new is None) for _, old, new in found)
            if least is None or cost < least:
                name, changes, least = option, [f"{key}={as_word(new)}" for key, _, new in found], cost
    return name, changes


@cache
def option_files(group: str) -> dict[str, dict[str, Any]]:
    """The YAML of each option of a group, by the name of the option."""
    folder = config_directory() / group
    return {name: yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in options(folder.parent, group)}


def _changes(values: Mapping[str, Any], node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Keys of a node with another value than its option's file has; interpolations there may have any."""
    for key in (*values, *(key for key in node if key not in values)):
        value = values.get(key)
        new = node.get(key, value)
        old = float(value) if isinstance(value, str) and _is_number(value) else value  # YAML reads 1e-3 as text
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{prefix}{key}.")
        elif new not in (old, value) and not str(value).startswith("${"):
            yield f"{prefix}{key}", old, new


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def as_word(value: Any) -> str:
    """A value as one would type it, short."""
    if isinstance(value, list | tuple):
        return f"[{','.join(as_word(item) for item in value)}]"
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def names_option(group: str, node: Mapping[str, Any], key: str) -> bool:
    """Whether a key tells a node's option from others of the same class, as `activation` tells gelu from relu."""
    files = option_files(group)
    name = nearest_option(group, node)[0]
    alike = [values for values in files.values() if values.get("_target_") == node["_target_"]]
    return len({str(values.get(key)) for values in alike}) > 1 and files[name].get(key) == node.get(key)
