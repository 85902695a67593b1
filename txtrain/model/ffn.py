"""The feed-forward sublayer, plain and gated."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from txtrain.model.shape import Stack

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),  # as GPT-2, BLOOM, Gemma and T5 1.1 were trained
    "silu": F.silu,
}


def inner_width(dim: int, *, gated: bool) -> int:
    """The width of a feed-forward layer that is told none."""
    return -(-8 * dim // (3 * 8)) * 8 if gated else 4 * dim


class FeedForward(nn.Module):
    """down(activation(up(x))), at every position alike (https://arxiv.org/abs/1706.03762).

    Args:
        stack: sizes; the inner width is `ffn_dim`, or 4 D.
        activation: the nonlinearity.
        bias: whether the projections have biases.
    """

    def __init__(
        self, *, stack: Stack, activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu", bias: bool = False
    ) -> None:
        super().__init__()
        inner = stack.ffn_dim or inner_width(stack.dim, gated=False)
        self.activation = ACTIVATIONS[activation]
        self.up_proj = nn.Linear(stack.dim, inner, bias=bias)
        self.down_proj = nn.Linear(inner, stack.dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        return self.down_proj(self.activation(self.up_proj(x)))


class GatedFeedForward(nn.Module):
    """down(activation(gate(x)) · up(x)) (https://arxiv.org/abs/2002.05202): SwiGLU with silu, GEGLU with gelu.

    Args:
        stack: sizes; the inner width is `ffn_dim`, or ⅔ of 4 D (as many parameters as without the gate) in steps of 8.
        activation: the nonlinearity of the gate.
        bias: whether the projections have biases.
    """

    def __init__(
        self, *, stack: Stack, activation: Literal["silu", "gelu", "gelu_tanh"] = "silu", bias: bool = False
    ) -> None:
        super().__init__()
        inner = stack.ffn_dim or inner_width(stack.dim, gated=True)
        self.activation = ACTIVATIONS[activation]
        self.gate_proj = nn.Linear(stack.dim, inner, bias=bias)
        self.up_proj = nn.Linear(stack.dim, inner, bias=bias)
        self.down_proj = nn.Linear(inner, stack.dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))
