"""A penalty on scores that grows with distance, at a fixed rate for each head."""

import torch
from torch import Tensor

from txtrain.model.encoding.base import Encoding
from txtrain.model.shape import Stack


class Alibi(Encoding):
    """ALiBi (https://arxiv.org/abs/2108.12409): bias -slope_h · |i - j|, symmetric in encoders.

    With n the largest power of two up to H, the first n heads have slopes 2^(-8(h+1)/n), and the others every second
    one of 2n heads', 2^(-4(2(h-n)+1)/n), as in the authors' code. On a grid the distance is the straight one (2D-ALiBi,
    https://arxiv.org/abs/2311.00566).

    Args:
        stack: what it serves.
        max_exponent: the 8 in these: the gentlest of n slopes is 2^-8.
    """

    on_grids = True

    def __init__(self, *, stack: Stack, max_exponent: float = 8.0) -> None:
        super().__init__(stack=stack)
        if max_exponent <= 0:
            raise ValueError(
                f"encoding.max_exponent is {max_exponent}: give a positive number, such as encoding.max_exponent=8"
            )
        self.max_exponent = max_exponent

    def bias_rule(self, head: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        return -self.slope(head) * (q_position - k_position).abs()

    def slope(self, head: Tensor) -> Tensor:
        """Slopes of heads, computed rather than looked up so that kernels can inline the rule."""
        n = 1 << self.stack.num_heads.bit_length() - 1
        position = torch.where(head < n, 2 * (head + 1), 2 * (head - n) + 1)
        return torch.exp2(-self.max_exponent / 2 * position.float() / n)
