"""Attention kernels: the same attention, computed in the ways that different hardware does well."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from txtrain.model.encoding.base import Encoding
from txtrain.model.mask import Mask


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What decides the scores of one forward pass beside queries and keys: the mask, and the encoding's bias.

    Args:
        mask: which keys a query may see.
        encoding: whose bias is added; None in cross-attention.
        q_positions: (B or 1, Q) positions of the queries.
        k_positions: (B or 1, K) positions of the keys.
    """

    mask: Mask
    encoding: Encoding | None
    q_positions: Tensor
    k_positions: Tensor

    @property
    def num_queries(self) -> int:
        return self.q_positions.size(1)

    @property
    def num_keys(self) -> int:
        return self.k_positions.size(1)

    def narrow(self, window: int | None) -> int | None:
        """The window, or None if all keys fit into it."""
        return window if window is not None and window < self.num_keys else None

    def last(self, num_keys: int) -> "Scores":
        """The same without the keys before the last `num_keys`."""
        return replace(self, mask=self.mask.last(num_keys), k_positions=self.k_positions[:, -num_keys:])

    def bias(self) -> Tensor | None:
        """(B or 1, H, Q, K) or None."""
        return None if self.encoding is None else self.encoding.bias(self.q_positions, self.k_positions)

    def lengths(self) -> Tensor:
        """(B or 1, Q): how long the sequence, or document, of each query is, without padding."""
        first, end, real = self.k_positions, self.k_positions + 1, self.mask.padding
        if real is not None:
            first, end = torch.where(real, first, end.max()), torch.where(real, end, 0)
        if self.mask.documents is None:
            lengths = end.amax(-1, keepdim=True).expand(-1, self.num_keys)
        else:
            numbers, document = torch.unique(self.mask.documents, return_inverse=True)
            first, end, document = torch.broadcast_tensors(first, end, document)
            empty = end.new_zeros(len(end), len(numbers))
            ends = empty.scatter_reduce(1, document, end, "amax")
            begins = empty.scatter_reduce(1, document, first, "amin", include_self=False)
            lengths = (ends - begins).gather(1, document)
        return lengths[:, -self.num_queries :].clamp(min=1)

    def visible(self, window: int | None) -> Tensor:
        """(B or 1, 1, Q, K) booleans."""
        return self.mask.dense(window, self.num_queries, self.num_keys, self.q_positions.device)


class Kernel(ABC):
    """One way to compute attention: `prepare` once in a forward pass, then `attend` in each layer.

    A query that sees no key gets zeros, and gradients are zero there.
    """

    name: str

    @abstractmethod
    def prepare(self, scores: Scores, windows: set[int | None], dtype: torch.dtype) -> dict[int | None, Any]:
        """What layers share, for each window size that they use; dtype is that of queries and keys."""

    @abstractmethod
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, prepared: Any, *, scale: float, soft_cap: float | None, dropout: float
    ) -> Tensor:
        """q (B, H, Q, head_dim), k and v (B, KV heads, K, head_dim) → (B, H, Q, head_dim)."""


@dataclass(frozen=True)
class Dense:
    """For kernels that add a tensor to all scores: `added` (B or 1, H or 1, Q, K), -∞ if masked; or `causal` alone.

    With a cache and a window, `last` is how many of the latest keys any query sees.
    """

    causal: bool
    added: Tensor | None
    last: int | None = None

    def seen(self, x: Tensor) -> Tensor:
        """Keys or values (B, KV heads, K, head_dim) without those that no query sees."""
        return x if self.last is None else x[:, :, -self.last :]


class SDPA(Kernel):
    """`scaled_dot_product_attention`, in which PyTorch has kernels of its own: see `sdpa_variant`."""

    name = "sdpa"

    def prepare(self, scores: Scores, windows: set[int | None], dtype: torch.dtype) -> dict[int | None, Dense]:
        bias = scores.bias()
        return {window: self._within(scores, bias, window, dtype) for window in windows}

    def _within(self, scores: Scores, bias: Tensor | None, window: int | None, dtype: torch.dtype) -> Dense:
        """Of a window reaching back from the first query, if there is one; of all keys otherwise."""
        last = None if window is None else window + scores.num_queries - 1
        if last is None or not scores.mask.causal or last >= scores.num_keys:
            return self._dense(scores, bias, scores.narrow(window), dtype)
        scores, bias = scores.last(last), None if bias is None else bias[..., -last:]
        return replace(self._dense(scores, bias, scores.narrow(window), dtype), last=last)

    @staticmethod
    def _dense(scores: Scores, bias: Tensor | None, window: int | None, dtype: torch.dtype) -> Dense:
        # One query with a cache is the last token, from which causality hides nothing.
        causal = scores.mask.causal and scores.num_queries > 1
        masked = scores.mask.is_dense(window)
        if bias is None and not masked and (not causal or scores.num_queries == scores.num_keys):
            return Dense(causal=causal, added=None)
        # Booleans would be turned into numbers in each layer, and kept there for the backward pass.
        added = torch.zeros((), dtype=dtype, device=scores.q_positions.device) if bias is None else bias.to(dtype)
        if causal or masked:
            added = torch.where(scores.visible(window), added, -math.inf)
        return Dense(causal=False, added=added)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, prepared: Dense, *, scale: float, soft_cap: float | None, dropout: float
    ) -> Tensor:
        k, v, grouped = prepared.seen(k), prepared.seen(v), q.size(1) != k.size(1)
        if grouped and q.is_cuda and prepared.added is not None:
            # Of CUDA's kernels, the one that takes additions knows no groups; on a CPU both go together.
            k, v, grouped = _repeat_heads(k, q), _repeat_heads(v, q), False
        return F.scaled_dot_product_attention(
            q, k, v, prepared.added, dropout, prepared.causal, scale=scale, enable_gqa=grouped
        )


class Eager(SDPA):
    """Plain matrix products: for a soft cap, which `scaled_dot_product_attention` cannot apply."""

    name = "eager"

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, prepared: Dense, *, scale: float, soft_cap: float | None, dropout: float
    ) -> Tensor:
        k, v = _repeat_heads(prepared.seen(k), q), _repeat_heads(prepared.seen(v), q)
        wide = torch.promote_types(q.dtype, torch.float32)
        logits = soft_capped((q @ k.transpose(-2, -1)).to(wide) * scale, soft_cap)
        if prepared.causal:
            logits = logits.masked_fill(~torch.ones_like(logits[0, 0], dtype=torch.bool).tril(), -math.inf)
        if prepared.added is None:
            weights = logits.softmax(-1)
        else:
            logits = logits + prepared.added
            blind = (logits == -math.inf).all(-1, keepdim=True)
            weights = logits.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
        return F.dropout(weights.to(v.dtype), dropout, training=dropout > 0) @ v


@dataclass(frozen=True)
class Blocks:
    """For FlexAttention: the rule of the scores, and which blocks of 128 × 128 of them are worth computing."""

    scores: Scores
    block_mask: BlockMask | None


class Flex(Kernel):
    """FlexAttention (https://arxiv.org/abs/2412.05496): bias, mask and soft cap inside the fast kernel, elementwise.

    It skips blocks that are masked whole and never holds the scores. Needs a GPU to train on and a head of at least 16;
    has no dropout.

    Args:
        compiled: False computes the same unfused, for tests on a CPU.
    """

    name = "flex"

    def __init__(self, *, compiled: bool = True) -> None:
        self.compiled = compiled

    @cached_property
    def _functions(self) -> tuple[Callable[..., BlockMask], Callable[..., Tensor]]:
        """Made at first use, since the compiler takes seconds to load."""
        if not self.compiled:
            return create_block_mask, flex_attention
        return torch.compile(create_block_mask), torch.compile(flex_attention)

    def prepare(self, scores: Scores, windows: set[int | None], dtype: torch.dtype) -> dict[int | None, Blocks]:
        return {window: self._blocks(scores, scores.narrow(window)) for window in windows}

    def _blocks(self, scores: Scores, window: int | None) -> Blocks:
        mask, offset = scores.mask, scores.num_keys - scores.num_queries
        if not mask.causal and not mask.is_dense(window):
            return Blocks(scores, None)

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return mask.allows(batch, query + offset, key, window)

        rows = mask.rows if mask.rows > 1 else None
        device = scores.q_positions.device
        block_mask = self._functions[0](visible, rows, None, scores.num_queries, scores.num_keys, device=device)
        return Blocks(scores, block_mask)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, prepared: Blocks, *, scale: float, soft_cap: float | None, dropout: float
    ) -> Tensor:
        # Under autocast rotated or normalised heads may be float32, and the kernel wants all of one type.
        q, k, grouped = q.to(v.dtype), k.to(v.dtype), q.size(1) != k.size(1)
        rule = score_rule(prepared.scores, soft_cap)
        return self._functions[1](q, k, v, rule, prepared.block_mask, scale=scale, enable_gqa=grouped)


def score_rule(scores: Scores, soft_cap: float | None) -> Callable[..., Tensor] | None:
    """Soft cap, then bias, of one score at a time; None if there is neither."""
    q_positions, k_positions = scores.q_positions, scores.k_positions
    encoding = scores.encoding if scores.encoding is not None and scores.encoding.has_bias else None
    if soft_cap is None and encoding is None:
        return None

    def rule(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        score = soft_capped(score, soft_cap)
        if encoding is None:
            return score
        q_row = batch if q_positions.size(0) > 1 else 0
        k_row = batch if k_positions.size(0) > 1 else 0
        if encoding.stack.grid is None:
            return score + encoding.bias_rule(head, q_positions[q_row, query], k_positions[k_row, key])
        q_axes = [q_positions[q_row, query, axis] for axis in range(q_positions.size(-1))]
        k_axes = [k_positions[k_row, key, axis] for axis in range(k_positions.size(-1))]
        return score + encoding.grid_rule(head, q_axes, k_axes)

    return rule


def soft_capped(scores: Tensor, soft_cap: float | None) -> Tensor:
    return scores if soft_cap is None else soft_cap * torch.tanh(scores / soft_cap)


def _repeat_heads(x: Tensor, q: Tensor) -> Tensor:
    """Each key or value head once for every query head of its group."""
    return x if x.size(1) == q.size(1) else x.repeat_interleave(q.size(1) // x.size(1), dim=1)


@dataclass(frozen=True, kw_only=True)
class Demands:
    """What a stack's attention asks of a kernel in one forward pass.

    Args:
        device: its type, such as cuda.
        dtype: of queries and keys.
        head_dim: width of a head.
        dropout: on the attention weights.
        soft_cap: of the scores.
        bias: the encoding's: none, without parameters that train, or with such.
        bias_rule: whether that bias has an elementwise rule.
        masks: what restricts a query beyond causality, in words.
        cached: whether there are fewer queries than keys, as in generation.
    """

    device: str
    dtype: torch.dtype = torch.float32
    head_dim: int = 64
    dropout: float = 0.0
    soft_cap: float | None = None
    bias: Literal["none", "fixed", "learned"] = "none"
    bias_rule: bool = True
    masks: tuple[str, ...] = ()
    cached: bool = False

    def beyond_causal(self) -> list[str]:
        """What FlashAttention cannot do, in words."""
        bias = [f"a {self.bias} bias"] if self.bias != "none" else []
        cap = [f"attention.soft_cap={self.soft_cap:g}"] if self.soft_cap is not None else []
        return [*bias, *self.masks, *cap]

    def against_flex(self) -> str | None:
        """Why FlexAttention cannot do it, or None."""
        if self.device != "cuda":
            return f"FlexAttention has no backward pass on {self.device}"
        if self.bias == "learned":
            return "the gradient of a learned bias in FlexAttention is not verified on GPUs"
        if self.bias == "fixed" and not self.bias_rule:
            return "the bias has no elementwise rule for FlexAttention"
        if self.dropout:
            return f"FlexAttention has no dropout (model.dropout={self.dropout:g})"
        if self.head_dim < 16:
            return f"FlexAttention needs heads of at least 16 and these are {self.head_dim}"
        return "FlexAttention would be compiled for every length" if self.cached else None


@dataclass(frozen=True)
class Choice:
    """A kernel, which variant of it runs, and why."""

    kernel: Kernel
    variant: str
    why: str

    def __str__(self) -> str:
        return f"{self.kernel.name} ({self.variant}): {self.why}"


@cache
def choose_kernel(demands: Demands) -> Choice:
    """The fastest kernel that does what is asked."""
    beyond, against = " and ".join(demands.beyond_causal()), demands.against_flex()
    if beyond and against is None:
        return Choice(Flex(), "compiled", f"{beyond} inside the fast kernel")
    if demands.soft_cap is not None:
        return Choice(Eager(), "all scores held", f"{beyond}; {against}")
    variant, why = sdpa_variant(demands)
    return Choice(SDPA(), variant, f"{why}; {against}" if beyond and demands.device == "cuda" else why)


def sdpa_variant(demands: Demands) -> tuple[str, str]:
    """What PyTorch runs in `scaled_dot_product_attention`, and why: flash, efficient, or math, which is slow."""
    beyond, heads = " and ".join(demands.beyond_causal()), demands.head_dim
    plain = "no bias, and no mask but causality"
    if demands.device == "cpu":
        if demands.dropout:
            return "math", f"the CPU's flash kernel has no dropout (model.dropout={demands.dropout:g})"
        if demands.bias == "learned":
            return "math", "the CPU's flash kernel has no gradient for a learned bias"
        return "flash", f"{beyond} added to the scores" if beyond else plain
    if demands.device != "cuda":
        return "PyTorch's choice", f"on {demands.device}"
    half = demands.dtype in (torch.float16, torch.bfloat16)
    if not beyond and half and heads <= 256:
        return "flash", plain
    if heads % (8 if half else 4):
        return "math", f"heads of {heads} are no multiple of {8 if half else 4}"
    if beyond:
        return "efficient", f"{beyond} added to the scores"
    return "efficient", f"flash takes heads up to 256 in 16 bits; these are {heads} in {str(demands.dtype)[6:]}"
