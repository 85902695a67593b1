"""Families of models, one file for each; a file here is found by itself."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from txtrain.interop.family import Family


@cache
def families() -> dict[str, Family]:
    """All families, by each `model_type` that config.json may have."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    kinds = [
        kind
        for module in modules
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, Family) and kind.__module__ == module.__name__
    ]
    return {name: kind() for kind in kinds for name in kind.model_types}
