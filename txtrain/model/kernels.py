"""Attention kernels: the same attention, computed in the ways that different hardware does well."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

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

    def bias(self) -> Tensor | None:
        """(B or 1, H, Q, K) or None."""
        return None if self.encoding is None else self.encoding.bias(self.q_positions, self.k_positions)

    def visible(self, window: int | None) -> Tensor:
        """(B or 1, 1, Q, K) booleans."""
        return self.mask.dense(window, self.q_positions.size(1), self.k_positions.size(1), self.q_positions.device)


class Kernel(ABC):
    """One way to compute attention: `prepare` once in a forward pass, then `attend` in each layer."""

    name: str

    @abstractmethod
    def prepare(self, scores: Scores, windows: set[int | None], dtype: torch.dtype) -> dict[int | None, Any]:
        """What layers share, for each window size that they use."""

    @abstractmethod
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, prepared: Any, *, scale: float, soft_cap: float | None, dropout: float
    ) -> Tensor:
        """q (B, H, Q, head_dim), k and v (B, KV heads, K, head_dim) → (B, H, Q, head_dim)."""


@dataclass(frozen=True)
class DenseScores:
    """For kernels that hold the scores' additions whole: `causal` alone, or `added` (B or 1, H or 1, Q, K)."""

    causal: bool
    added: Tensor | None


class SDPA(Kernel):
    """`scaled_dot_product_attention`: PyTorch picks FlashAttention where causality is the only mask."""

    name = "sdpa"

    def prepare(self, scores: Scores, windows: set[int | None], dtype: torch.dtype) -> dict[int | None, DenseScores]:
        return {window: self._dense(scores, window, dtype) for window in windows}

    @staticmethod
    def _dense(scores: Scores, window: int | None, dtype: torch.dtype) -> DenseScores:
        bias, mask = scores.bias(), scores.mask
        if bias is None:
            square = scores.q_positions.size(1) == scores.k_positions.size(1)
            if not mask.is_dense(window) and (square or not mask.causal):
                return DenseScores(causal=mask.causal, added=None)
            return DenseScores(causal=False, added=scores.visible(window))
        if mask.causal or mask.is_dense(window):
            bias = bias.masked_fill(~scores.visible(window), -math.inf)
        return DenseScores(causal=False, added=bias.to(dtype))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, prepared: DenseScores, *, scale: float, soft_cap: float | None, dropout: float
    ) -> Tensor:
        return F.scaled_dot_product_attention(
            q, k, v, prepared.added, dropout, prepared.causal, scale=scale, enable_gqa=q.size(1) != k.size(1)
        )


class Eager(SDPA):
    """Plain matrix products: for a soft cap, which `scaled_dot_product_attention` cannot apply."""

    name = "eager"

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, prepared: DenseScores, *, scale: float, soft_cap: float | None, dropout: float
    ) -> Tensor:
        groups = q.size(1) // k.size(1)
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        logits = (q @ k.transpose(-2, -1)).float() * scale
        if soft_cap is not None:
            logits = soft_cap * torch.tanh(logits / soft_cap)
        if prepared.causal:
            logits = logits.masked_fill(~torch.ones_like(logits[0, 0], dtype=torch.bool).tril(), -math.inf)
        if prepared.added is not None:
            visible = prepared.added.dtype == torch.bool
            logits = logits.masked_fill(~prepared.added, -math.inf) if visible else logits + prepared.added
        weights = F.dropout(logits.softmax(-1).to(v.dtype), dropout, training=dropout > 0)
        return weights @ v


def choose_kernel(*, soft_cap: float | None) -> tuple[Kernel, str]:
    """The kernel for a stack, and why."""
    if soft_cap is not None:
        return Eager(), f"attention.soft_cap={soft_cap} is applied between two matrix products"
    return SDPA(), "nothing that it cannot do"
