"""Which layers of a model a target, a pattern or a range of layers means."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from txtrain.model.block import Block
from txtrain.model.embed import Embedding

Layers = str | int | list[int] | None
Value = TypeVar("Value")


def layers_for(model: nn.Module, targets: list[str], layers: Layers) -> dict[str, nn.Linear | nn.Embedding]:
    """The layers that the targets mean, by name; of those in blocks, only in blocks with these numbers."""
    linears = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    tables = _tables(model)
    numbers = _block_numbers(model, linears)
    chosen: set[str] = set()
    for target in targets:
        found = list(numbers) if target == "all" else [name for name in linears if matches(name, target)]
        found += [name for name in tables if _ends(name, target)]  # no glob means them, they are too unlike
        if not found:
            raise ValueError(_no_match(target, [*linears, *tables]))
        chosen.update(found)
    if layers is not None:
        wanted = _wanted(layers, max(numbers.values()) + 1)
        chosen = {name for name in chosen if name not in numbers or numbers[name] in wanted}
        if not chosen:
            raise ValueError(f"lora.layers={layers} leaves no layer of lora.targets: leave one of them out")
    both: dict[str, nn.Linear | nn.Embedding] = {**tables, **linears}
    return {name: layer for name, layer in both.items() if name in chosen}


def of_pattern(pattern: Mapping[str, Value], name: str, otherwise: Value) -> Value:
    """The value of the first target in a pattern that means a layer."""
    return next((value for target, value in pattern.items() if matches(name, target)), otherwise)


def check_pattern(key: str, pattern: Mapping[str, object], names: list[str]) -> None:
    """Refuses a pattern with a target that means none of the layers with adapters."""
    for target in pattern:
        if not any(matches(name, target) for name in names):
            near = _near(target, names)
            raise ValueError(
                f"lora.{key} has {target!r}, which matches no layer of lora.targets; there are "
                f"{', '.join(_ends_of(names))}: set lora.{key}={{{(near or _ends_of(names))[0]}:{pattern[target]}}}"
            )


def matches(name: str, target: str) -> bool:
    """Whether a target is the end of a name, or a glob that the whole name fits."""
    return _ends(name, target) or fnmatchcase(name, target)


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _tables(model: nn.Module) -> dict[str, nn.Embedding]:
    """The vectors of tokens and token types."""
    return {
        f"{parent}.{name}": table
        for parent, module in model.named_modules()
        if isinstance(module, Embedding)
        for name, table in module.named_children()
        if isinstance(table, nn.Embedding)
    }


def _block_numbers(model: nn.Module, linears: Mapping[str, nn.Linear]) -> dict[str, int]:
    """For each linear layer within a block, which block of its stack that is."""
    blocks = [name for name, part in model.named_modules() if isinstance(part, Block)]
    return {name: int(block.rpartition(".")[2]) for name in linears for block in blocks if name.startswith(f"{block}.")}


def _wanted(layers: Layers, count: int) -> set[int]:
    """The numbers that `lora.layers` means; 4-7 is from 4 to 7."""
    ends = re.fullmatch(r"(\d+)-(\d+)", layers) if isinstance(layers, str) else None
    if ends:
        wanted = set(range(int(ends[1]), int(ends[2]) + 1))
    elif isinstance(layers, str):
        raise ValueError(f"lora.layers is {layers!r}: give a number (lora.layers=0), a range such as 0-3, or a list")
    else:
        wanted = {layers} if isinstance(layers, int) else set(layers or [])
    if not wanted or not wanted <= set(range(count)):
        raise ValueError(
            f"lora.layers is {layers}, and there are layers 0 to {count - 1}: set lora.layers=0-{count - 1}"
        )
    return wanted


def _near(target: str, names: list[str]) -> list[str]:
    return get_close_matches(target, _ends_of(names) + names, n=3, cutoff=0.5)


def _ends_of(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _no_match(target: str, names: list[str]) -> str:
    near = _near(target, names)
    offer = f"nearest are {', '.join(near)}" if near else f"there are {', '.join(_ends_of(names))}"
    return f"lora.targets has {target!r}, which matches no layer; {offer}: set lora.targets={(near or ['all'])[0]}"
