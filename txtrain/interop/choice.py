"""The family that expresses a model, known before it is trained: what `txtrain export` will write."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from txtrain.errors import UserError
from txtrain.interop.axes import GROUPS, Flat, Nodes, to_flat, typed
from txtrain.interop.families import families
from txtrain.interop.family import Family
from txtrain.model.lora import adapters
from txtrain.model.lora.merging import tied

EXPORTED = "hugging_face"  # the folder in a run directory that export=true makes


def with_table(axes: Mapping[str, Mapping[str, Any]], max_len: int | None) -> Nodes:
    """The axes, with the length of a table of positions that the data gave it."""
    nodes = {group: dict(axes[group]) for group in GROUPS}
    if max_len and "encoding.max_len" in to_flat(nodes) and nodes["encoding"].get("max_len") is None:
        nodes["encoding"]["max_len"] = max_len
    return nodes


def nearest_family(candidates: Iterable[Family], axes: Nodes) -> tuple[Family, Flat] | None:
    """The family that lacks the fewest of the axes, and these; None if there is no candidate."""
    found = [(family, family.lacks(axes)) for family in candidates]
    return min(found, key=lambda pair: len(pair[1]), default=None)


def of_class(model_class: type) -> list[Family]:
    """The families whose models are of a class of ours."""
    return [family for family in families().values() if family.model_class is model_class]


def merged_axes(axes: Mapping[str, Any], model: nn.Module) -> Mapping[str, Any]:
    """The axes of a model once its adapters are merged, which may untie head and embedding."""
    if (axes.get("embedding") or {}).get("tied") and tied(model, [name for name, _ in adapters(model)]):
        return {**axes, "embedding": {**axes["embedding"], "tied": False}}
    return axes


def describe_export(model_class: type, axes: Mapping[str, Any], max_len: int | None) -> tuple[bool, str]:
    """Whether a model can be exported, and as what, in words.

    Args:
        model_class: of the model.
        axes: config nodes by group.
        max_len: the longest sequence of tokens in training, if it reads tokens.
    """
    try:
        nodes = with_table(axes, max_len)
        nearest = nearest_family(of_class(model_class), nodes)
    except (KeyError, UserError):  # an option of the user's own package
        nearest = None
    if nearest is None:
        return False, "has no Hugging Face family"
    family, lacking = nearest
    if lacking:
        return False, f"has no Hugging Face family: {family.model_types[0]}, the nearest, lacks {typed(lacking, nodes)}"
    return True, f"exports as {family.model_types[0]}"


def check_export(model_class: type, axes: Mapping[str, Any], max_len: int | None, folder: Path) -> None:
    """Refuses what could not be exported into a folder after training.

    Raises:
        UserError: no family has all axes, or the folder is there.
    """
    possible, told = describe_export(model_class, axes, max_len)
    if not possible:
        raise UserError(f"export=true, and the model {told}: choose other options, or leave export out")
    if folder.exists() or folder.is_symlink():
        raise UserError(f"export=true, and {folder} exists: move it away, or type export=false")
