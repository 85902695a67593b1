"""SHA-256 of the frozen weights under a run's adapters, which a run that uses the adapters compares.

It is of the weights as they are stored, in float32: precision and strategy of the training do not alter it. Earlier
versions took it of the weights in the type that they trained in, such as bfloat16.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from txtrain.saving import content_hash

if TYPE_CHECKING:
    from txtrain.model.lora import LoRA

TRAINED_IN = (torch.bfloat16, torch.float64, torch.float16)  # by earlier versions, besides float32


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Parameters that are made within have this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def frozen_hash(model: nn.Module) -> str:
    """Of a model with adapters, before any weight is put into 4 bits."""
    return content_hash((name, weight) for name, weight in model.named_parameters() if not weight.requires_grad)


def base_hash(build_model: Callable[[], nn.Module], lora: "LoRA", dtype: torch.dtype = torch.float32) -> str:
    """The same of the model that `build_model` makes, with weights of a type; random numbers are drawn apart."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), default_dtype(dtype):
        model = build_model()
        lora.apply(model, adapt_only=True)
        return frozen_hash(model)


def is_base(sha256: str, found: str, build_model: Callable[[], nn.Module], lora: "LoRA") -> bool:
    """Whether a checkpoint's hash is that of these weights.

    Args:
        sha256: the checkpoint's.
        found: the hash of the weights, as this version takes it.
        build_model, lora: what makes the model, for the hashes of earlier versions.
    """
    return sha256 == found or any(sha256 == base_hash(build_model, lora, dtype) for dtype in TRAINED_IN)
