"""Models that cannot be: refused by arithmetic, before memory is asked for."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from txtrain.devices import machine_memory
from txtrain.errors import UserError
from txtrain.records import RESTORE

if TYPE_CHECKING:
    from torch import nn

MANY_LAYERS = 128  # from here on it takes long to make them
SMALLER = "make model.dim, model.num_layers or the vocabulary smaller"


def made(build_model: "Callable[[], nn.Module]") -> "nn.Module":
    """What `build_model` makes.

    Raises:
        UserError: a matrix of it has more bytes than a number of 64 bits counts.
    """
    try:
        return build_model()
    except (RuntimeError, TypeError, OverflowError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise UserError(f"the model has a matrix that no memory can hold: {SMALLER}") from error


def check_memory(model: "nn.Module", precision: int | str) -> None:
    """Refuses a model whose weights alone, which are made in main memory first, are more than there is for a process.

    Args:
        model: on the meta device.
        precision: Lightning's name for it.
    """
    width = 2 if str(precision).endswith("16-true") else 8
    needed = sum(weight.numel() * min(weight.element_size(), width) for weight in model.parameters())
    there = machine_memory()
    if needed > there:
        raise UserError(
            f"the model's weights alone take {needed / 2**30:,.1f} GiB, and this machine, or its container, has "
            f"{there / 2**30:,.1f} GiB of memory: {SMALLER}, or type dry_run=true to describe it"
        )


def check_layers(run: Path, config: Mapping[str, Any]) -> None:
    """Refuses a run's config that has many layers more than its checkpoint, which would take minutes to make.

    Args:
        run: its directory.
        config: what it holds; of adapters of another model, the layers are not in the run, and not counted.

    Raises:
        UserError: so it is.
    """
    sizes = [config["model"].get(key) for key in ("num_layers", "num_decoder_layers")]
    layers = max((size for size in sizes if isinstance(size, int)), default=0)
    if layers <= MANY_LAYERS or config.get("init_from"):
        return
    from txtrain.saving import BASE, WEIGHT, Reader, find_checkpoint  # which import torch

    if (checkpoint := find_checkpoint(run)) is None:
        return
    names = Reader(checkpoint, checkpoint.parent / BASE).names(WEIGHT)
    there = max((int(number) + 1 for name in names for number in re.findall(r"\.(\d+)\.", name)), default=0)
    if layers > there:
        raise UserError(f"{run} names a model of {layers} layers, and its checkpoint has {there}: {RESTORE}")
