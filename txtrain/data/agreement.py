"""What the sets of a mixture must have in common, and what its weights may be."""

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from txtrain.data.base import Data
from txtrain.errors import UserError
from txtrain.mixtures import NAME, NAMING, unlike
from txtrain.schema import nearest


def check_names(sets: Mapping[str, Any]) -> None:
    """Refuses a mixture of nothing, and names that cannot stand in keys and in names of metrics."""
    if not sets:
        raise UserError("data=mixture has no sets: type data.sets.NAME=OPTION for each, such as data.sets.code=stdlib")
    for name, new in sets.items():
        if not re.fullmatch(NAME, name):
            raise UserError(f"data.sets has a set '{name}': {NAMING}")
        if not callable(new):
            raise UserError(f"data.sets.{name} is {new}, no data set: type data.sets.{name}=OPTION, an option of data")
        if isinstance(new, partial) and getattr(new.func, "open_ended", False):
            raise UserError(f"data.sets.{name} is a mixture itself: name its sets beside the others")


def checked_weights(sets: Mapping[str, Any], weights: Mapping[str, float] | None) -> dict[str, float] | None:
    """The weights, if there is one for each set and one at least is positive."""
    if weights is None:
        return None
    for name, weight in weights.items():
        if name not in sets:
            near = nearest(name, sets)
            raise UserError(
                f"data.weights.{name} is of no set: "
                + (f"did you mean data.weights.{near}?" if near else f"the sets are {', '.join(sets)}")
            )
        if not math.isfinite(weight) or weight < 0:
            raise UserError(f"data.weights.{name} is {weight}: give 0 or more, such as data.weights.{name}=1")
    missing = [name for name in sets if name not in weights]
    if missing:
        raise UserError(
            f"data.weights has none for {', '.join(missing)}: type data.weights.{missing[0]}=1, or 0 to validate only"
        )
    if not any(weights.values()):
        raise UserError(
            f"data.weights are all 0: give the sets to train on more, such as data.weights.{next(iter(sets))}=1"
        )
    return {name: weights[name] for name in sets}


def check_alike(parts: Mapping[str, Data], sets: Mapping[str, Any]) -> None:
    """Refuses sets of different kinds, and those of one kind whose samples a model could not read alike."""
    (first, data), *others = parts.items()
    for name, other in others:
        if other.content != data.content:
            raise UserError(
                f"data.sets.{first} is {data.content} ({type(data).__name__}) and data.sets.{name} is {other.content} "
                f"({type(other).__name__}): a mixture has sets of one kind"
            )
        for key in data.alike:
            mine, theirs = (setting(each, sets[each_name], key) for each_name, each in ((first, data), (name, other)))
            if mine != theirs:
                raise UserError(unlike(key, {first: told(mine), name: told(theirs)}))


def setting(data: Data, new: Any, key: str) -> Any:
    """What a set was made with, comparable."""
    value = getattr(data, key, None)
    if value is None and isinstance(new, partial):
        value = new.keywords.get(key)
    if isinstance(value, str | int | float | bool | list | tuple | None):
        return value
    return type(value).__name__, {
        name: part for name, part in vars(value).items() if isinstance(part, str | int | float)
    }


def told(value: Any) -> str:
    return str(value) if not isinstance(value, tuple) else ", ".join(map(str, (value[0], *value[1].values())))
