"""Attention maps: how much queries of chosen layers and heads take of each key, recorded in a forward pass."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from txtrain.model.attention import Attention, Context
from txtrain.model.block import Block
from txtrain.model.kernels import Kernel, Scores, soft_capped
from txtrain.model.transformer import TransformerStack

Where = Literal["encoder", "decoder", "cross"]


@dataclass(frozen=True, kw_only=True)
class AttentionMap:
    """The attention of one head in one pass.

    Args:
        where: self-attention of an `encoder` or a `decoder`, or a decoder's `cross`-attention to an encoder.
        layer, head: their numbers, from 0.
        weights: (B, Q, K) float32 or wider, on the CPU; those of a query are 0 or more and add up to 1, or are all 0 if
            it sees no key.
    """

    where: Where
    layer: int
    head: int
    weights: Tensor


class Recording(Kernel):
    """Hands on to a layer's own kernel, and keeps what chosen heads look at, which fast kernels never hold.

    Args:
        kernel: of the pass.
        scores: its mask and bias.
        window: of the layer.
        heads: that are kept.
        found: takes their weights, (B, heads, Q, K).
    """

    def __init__(
        self, kernel: Kernel, scores: Scores, window: int | None, heads: Sequence[int], found: list[Tensor]
    ) -> None:
        self.kernel, self.scores, self.window, self.heads, self.found = kernel, scores, window, heads, found

    def prepare(self, scores: Scores, windows: set[int | None], dtype: torch.dtype) -> dict[int | None, Any]:
        return self.kernel.prepare(scores, windows, dtype)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, prepared: Any, *, scale: float, soft_cap: float | None, dropout: float
    ) -> Tensor:
        weights = attention_weights(q, k, self.scores, self.window, self.heads, scale=scale, soft_cap=soft_cap)
        self.found.append(weights.cpu())
        return self.kernel.attend(q, k, v, prepared, scale=scale, soft_cap=soft_cap, dropout=dropout)


def attention_weights(
    q: Tensor,
    k: Tensor,
    scores: Scores,
    window: int | None,
    heads: Sequence[int],
    *,
    scale: float,
    soft_cap: float | None,
) -> Tensor:
    """The softmax of some heads' scores: q (B, H, Q, head_dim), k (B, KV heads, K, head_dim) → (B, heads, Q, K)."""
    group = q.size(1) // k.size(1)
    wide = torch.promote_types(q.dtype, torch.float32)
    queries, keys = q[:, heads].to(wide), k[:, [head // group for head in heads]].to(wide)
    with torch.autocast(q.device.type, enabled=False):
        logits = soft_capped(queries @ keys.transpose(-2, -1) * scale, soft_cap)
    bias = scores.bias()
    if bias is not None:
        logits = logits + bias[:, heads]
    logits = logits.masked_fill(~scores.visible(scores.narrow(window)), -math.inf)
    blind = (logits == -math.inf).all(-1, keepdim=True)
    return logits.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)


@contextmanager
def recording(model: nn.Module, *, layers: Sequence[int], heads: Sequence[int]) -> Iterator[list[AttentionMap]]:
    """Around one forward pass, without a cache: what is in the list after it are the maps of these layers and heads.

    The pass computes what it would without. Nothing of it stays in the model, and compiled blocks run uncompiled.

    Args:
        model: with one or more stacks.
        layers, heads: numbers from 0; a stack that has no such layer has no map of it.
    """
    found: dict[tuple[Where, int], list[Tensor]] = {}
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    compiled = [block._compiled_call_impl for block in blocks]
    hooks = []
    for where, layer, attention in _attentions(model):
        if layer in layers:
            kept = found.setdefault((where, layer), [])
            watch = partial(_watch, heads=heads, found=kept)
            hooks.append(attention.register_forward_pre_hook(watch, with_kwargs=True))
    maps: list[AttentionMap] = []
    try:
        for block in blocks:
            block._compiled_call_impl = None
        yield maps
    finally:
        for block, call in zip(blocks, compiled, strict=True):
            block._compiled_call_impl = call
        for hook in hooks:
            hook.remove()
    for (where, layer), passes in found.items():
        for number, head in enumerate(heads):
            maps += [AttentionMap(where=where, layer=layer, head=head, weights=one[:, number]) for one in passes]


def sizes_of_stacks(model: nn.Module) -> list[tuple[int, int]]:
    """Layers and heads of each stack."""
    stacks = [module for module in model.modules() if isinstance(module, TransformerStack)]
    return [(len(stack.blocks), stack.encoding.stack.num_heads) for stack in stacks]


def _attentions(model: nn.Module) -> Iterator[tuple[Where, int, Attention]]:
    for stack in model.modules():
        if isinstance(stack, TransformerStack):
            for layer, block in enumerate(stack.blocks):
                yield "decoder" if stack.causal else "encoder", layer, block.attention  # type: ignore[misc]
                if block.cross_attention is not None:
                    yield "cross", layer, block.cross_attention  # type: ignore[misc]


def _watch(layer: Attention, given: tuple[Any, ...], named: Any, *, heads: Sequence[int], found: list[Tensor]) -> Any:
    """Before a layer's forward pass: the same arguments, but for the kernel."""
    x, context, *rest = given
    assert isinstance(context, Context)
    kernel = Recording(context.kernel, context.scores, layer.window, heads, found)
    return (x, replace(context, kernel=kernel), *rest), named
