"""The closed list of classes that a config may name, and the packages that the command line trusts beside them.

A `_target_` is imported and called. The list is what the package's own config tree names, by group. Nothing that is
read from a run, a folder or a file adds to it; `trust=[my_package]` on the command line does, while that command runs.
"""

import importlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from txtrain.errors import UserError
from txtrain.schema import nearest

# Classes by the names that they had when older runs were written. A class that moves gets its line here.
RENAMED = {
    f"txtrain.model.encoding.{name}": f"txtrain.model.encoding.{module}.{name}"
    for module, name in (
        ("alibi", "Alibi"),
        ("fire", "Fire"),
        ("kerple", "Kerple"),
        ("learned", "Learned"),
        ("none", "NoEncoding"),
        ("rope", "Rope"),
        ("sinusoidal", "Sinusoidal"),
        ("t5", "T5"),
        ("xpos", "XPos"),
    )
}

TRUST = re.compile(r"\+{0,2}trust=")
PACKAGE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# What means trust where texts are typed too, such as prompts.
TRUST_ALONE = re.compile(rf"{TRUST.pattern}(\[.*\]|{PACKAGE.pattern}(,{PACKAGE.pattern})*)")
SET_OF_MIXTURE = re.compile(r"data\.sets\.[^.]+")
GLOBAL = re.compile(r"^#\s*@package\s+_global_", re.MULTILINE)


@dataclass
class _Typed:
    """What the command that runs now trusts.

    Attributes:
        packages: what the user typed.
        form: how one types it for this command.
    """

    packages: list[str] = field(default_factory=list)
    form: str = "trust=[{}]"


_typed = _Typed()


def trust(packages: Iterable[str], *, form: str = "trust=[{}]") -> None:
    """Trusts the classes of these packages, and of no others, until the next call."""
    _typed.packages, _typed.form = list(dict.fromkeys(packages)), form


def trusted() -> list[str]:
    """The packages that the command line trusts."""
    return list(_typed.packages)


def read_trust(overrides: Sequence[str]) -> list[str]:
    """The packages in the `trust=[...]` of a command line.

    Raises:
        UserError: they are no names of packages.
    """
    found: list[str] = []
    for override in overrides:
        if match := TRUST.match(override):
            names = override[match.end() :].strip().removeprefix("[").removesuffix("]")
            found += [name.strip(" '\"") for name in names.split(",") if name.strip()]
    return check_packages(found, "trust=[my_package]")


def check_packages(names: Iterable[str], typed: str) -> list[str]:
    """Refuses what is no name of a package."""
    found = list(names)
    for name in found:
        if not PACKAGE.fullmatch(name):
            raise UserError(f"trust names Python packages, got '{name}': type {typed}")
    return found


def as_typed() -> list[str]:
    """What hands the same trust to another process of `txtrain train`."""
    return [f"trust=[{','.join(_typed.packages)}]"] if _typed.packages else []


@dataclass(frozen=True)
class Listed:
    """The classes of a group.

    Attributes:
        own: those of the group's own node, and whether it is a `_partial_` one.
        within: those of nodes within it.
    """

    own: dict[str, bool] = field(default_factory=dict)
    within: dict[str, bool] = field(default_factory=dict)


@cache
def listed() -> dict[str, Listed]:
    """What the config tree names, by group."""
    from txtrain.config import config_directory  # which imports this module

    found: dict[str, Listed] = defaultdict(Listed)
    directory = config_directory()
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the list is needed within the first second
    for file in sorted(directory.rglob("*.yaml")):
        text = file.read_text(encoding="utf-8")
        if "_target_" not in text:
            continue
        content = yaml.load(text, Loader=loader)
        if not GLOBAL.search(text):
            content = {".".join(file.parent.relative_to(directory).parts): content}
        for path, node in nodes(content):
            listing = found[path.partition(".")[0]]
            place = listing.own if _is_root(path) else listing.within
            place[node["_target_"]] = bool(node.get("_partial_", False))
    return dict(found)


def nodes(config: Any, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a `_target_` in a plain config, and its dotted path."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield path, config
        for key, value in config.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            yield from nodes(value, f"{path}.{index}")


def _is_root(path: str) -> bool:
    return "." not in path or SET_OF_MIXTURE.fullmatch(path) is not None


def allowed(path: str) -> dict[str, bool]:
    """The listed classes for a node at a dotted path of a config, and whether it is a `_partial_` one."""
    found = listed().get(path.partition(".")[0], Listed())
    return found.own if _is_root(path) else found.within


def check_target(path: str, node: Mapping[str, Any]) -> str:
    """The class that a node names, by its present name, if that may be loaded in this place.

    Raises:
        UserError: it is neither listed nor trusted.
    """
    target = node["_target_"]
    if not isinstance(target, str):
        raise UserError(f"{path}._target_ is {target}, which is no class of txtrain for this place: leave it out")
    target = RENAMED.get(target, target)
    names = allowed(path)
    if target not in names and not is_trusted(target):
        raise UserError(_refusal(path, target, names))
    return target


def check_partial(path: str, node: Mapping[str, Any]) -> None:
    """Refuses a listed class that would be made now where code makes it later, or the other way round."""
    names, partial = allowed(path), node.get("_partial_", False)
    if partial is not names.get(str(node["_target_"]), partial):
        raise UserError(f"{path}._partial_ is {partial}: type {path}._partial_={str(not partial).lower()}")


def locate(path: str, node: Mapping[str, Any]) -> Any:
    """Imports the class or function that a node names.

    Raises:
        UserError: it is neither listed nor trusted, or there is no such class.
    """
    target = check_target(path, node)
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise UserError(f"{path}._target_ is {target}: {module} has no {name}") from error
    except ModuleNotFoundError as error:
        if error.name is None or not target.startswith(error.name):  # a package that the option itself needs
            raise
        raise UserError(f"{path}._target_ is {target}: there is no module {error.name}") from error
    # A trusted package may have imported others, whose names it then has: my_package.os.system.
    if target not in allowed(path) and not (callable(found) and is_trusted(f"{found.__module__}.")):
        raise UserError(_refusal(path, target, allowed(path)))
    return found


def is_trusted(target: str) -> bool:
    """Whether the command line trusts what has this dotted path."""
    return any(target.startswith(f"{package}.") for package in _typed.packages)


def _refusal(path: str, target: str, names: Iterable[str]) -> str:
    near = nearest(target, names)
    meant = f" (did you mean {near}?)" if near else ""
    return f"{path}._target_ is {target}, which is no class of txtrain for this place{meant}: {trust_it(target)}"


def trust_it(target: str) -> str:
    """What to type so that a class may be loaded, if its code is trusted; nobody's own code is in Python's library."""
    package, _, rest = target.partition(".")
    if package in ("txtrain", "lightning", "torch"):  # of these a module, never all
        package = target.rpartition(".")[0]
    if not rest or package in sys.stdlib_module_names or not PACKAGE.fullmatch(target):
        return "leave it out"
    return f"if you trust that code, type {_typed.form.format(package)}"


def renamed(config: Any) -> Any:
    """A plain config with the present names of classes that have moved."""
    if isinstance(config, Mapping):
        found = {key: renamed(value) for key, value in config.items()}
        target = found.get("_target_")
        return found | {"_target_": RENAMED.get(target, target)} if isinstance(target, str) else found
    return [renamed(value) for value in config] if isinstance(config, list) else config
