"""What a model will run, in words."""

from typing import Any

import torch
from torch import nn

from txtrain.model.attention import demands_of
from txtrain.model.kernels import choose_kernel
from txtrain.model.transformer import TransformerStack


def explain_attention(
    model: nn.Module,
    device: str,
    dtype: torch.dtype = torch.float32,
    *,
    length: int | None = None,
    documents: bool = False,
    padding: bool = False,
) -> str:
    """The attention kernel of a model, and why: one line, such as `sdpa (flash): no bias, and no mask but causality`.

    Args:
        model: a built model.
        device: type of the device that it will run on, such as cuda.
        dtype: of its matrix products (bfloat16 in mixed precision).
        length: tokens that it reads at a time. Default: the longest sequence in training.
        documents: whether batches are packed with documents that must not see each other.
        padding: whether an encoder's input is padded.
    """
    choices: dict[str, str] = {}
    for part in model.modules():
        if isinstance(part, TransformerStack):
            stack = part.encoding.stack
            layers: list[Any] = [block.attention for block in part.blocks]
            shared: dict[str, Any] = {"device": device, "dtype": dtype, "length": length or stack.max_len}
            padded = padding and not stack.causal
            own = demands_of(layers, part.encoding, documents=documents, padding=padded, **shared)
            choices["decoder" if stack.causal else "encoder"] = str(choose_kernel(own))
            if stack.cross:
                layers = [block.cross_attention for block in part.blocks]
                choices["cross-attention"] = str(choose_kernel(demands_of(layers, None, padding=padding, **shared)))
    if len(set(choices.values())) == 1:
        return next(iter(choices.values()))
    return "; ".join(f"{where}: {choice}" for where, choice in choices.items())
