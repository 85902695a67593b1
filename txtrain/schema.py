"""The signature of a constructor is the schema of its config node: names, types and defaults of its arguments."""

import difflib
import inspect
import typing
from collections.abc import Iterable
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from txtrain.errors import UserError
from txtrain.grammar import for_shell

NAMES = {int: "an int", float: "a number", str: "a text", bool: "true or false", NoneType: "null"} | {
    list: "a list",
    tuple: "a list",
    dict: "a mapping",
}
SAMPLES = {int: 8, float: 0.1, str: "NAME", bool: True, NoneType: None, list: "[A,B]", tuple: "[A,B]", dict: "{A:B}"}


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that the user most likely meant."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return matches[0] if matches else None


def arguments(target: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """The keyword arguments of a class or function, and whether it takes others besides.

    A constructor that takes `**base` passes it on to the next one in the method resolution order, whose arguments
    then count as well. A class that is `open_ended` takes any.
    """
    functions = [target]
    if inspect.isclass(target):
        functions = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
    found: dict[str, inspect.Parameter] = {}
    for function in functions:
        hints = _type_hints(function)
        parameters = inspect.signature(function).parameters
        for name, parameter in parameters.items():
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) and name != "self":
                found.setdefault(name, parameter.replace(annotation=hints.get(name, Any)))
        # object and torch.nn.Module are written `(self, *args, **kwargs)` and take nothing.
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()) or [*parameters] == ["self", "args", "kwargs"]:
            return found, getattr(target, "open_ended", False)
    return found, True


def _type_hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:  # some annotations of Lightning exist for type checkers only
        return {}


def check_value(path: str, value: Any, annotation: Any, default: Any = None) -> None:
    """Refuse a value that its annotation does not allow, naming the override to type."""
    adapter = _adapter(annotation)
    try:
        if adapter is not None:
            adapter.validate_python(value)
    except ValidationError as error:
        members = _members(annotation)
        wanted = " or ".join(dict.fromkeys(_describe(member) for member in members))
        got = f"'{value}'" if isinstance(value, str) else as_typed(value)
        do = f"{path}={as_typed(_example(value, members[0], default))}"
        if str in members and isinstance(value, int | float | bool):
            do = for_shell(path, as_typed(value))
        raise UserError(f"{path} must be {wanted}, got {got}: type {do}") from error


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    """What checks a type; strict, so that true is no int and 2 no text."""
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return None


def _members(annotation: Any) -> list[Any]:
    """The types in a union, its literals first and gathered into one."""
    if typing.get_origin(annotation) not in (typing.Union, UnionType):
        return [annotation]
    flat = [inner for member in typing.get_args(annotation) for inner in _members(member)]
    literals = [member for member in flat if typing.get_origin(member) is Literal]
    values = tuple(value for member in literals for value in typing.get_args(member))
    return ([Literal[values]] if values else []) + [member for member in flat if member not in literals]


def _describe(member: Any) -> str:
    if typing.get_origin(member) is Literal:
        return "one of " + ", ".join(dict.fromkeys(as_typed(value) for value in typing.get_args(member)))
    kind = typing.get_origin(member) or member
    return NAMES.get(kind) or f"a {getattr(kind, '__name__', kind)}"


def _example(value: Any, member: Any, default: Any) -> Any:
    """A value to type instead: the literal nearest to it, the default, or any of the right type."""
    if typing.get_origin(member) is Literal:
        every = typing.get_args(member)
        literals = [
            literal for literal in every if f"{literal}-mixed" not in every
        ]  # Lightning warns of the short forms
        return nearest(str(value), [str(literal) for literal in literals]) or literals[0]
    if isinstance(default, int | float | str) and default and default != -1:  # Lightning's -1 is "no limit"
        return default
    return SAMPLES.get(typing.get_origin(member) or member, "VALUE")


def as_typed(value: Any) -> str:
    """The value as one types it in an override."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
