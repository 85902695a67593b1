"""A penalty on scores that grows with distance, at a fixed rate for each head."""

import torch
from torch import Tensor

from txtrain.model.encoding.base import Encoding


class Alibi(Encoding):
    """ALiBi (https://arxiv.org/abs/2108.12409): bias -slope_h · |i - j|, symmetric in encoders.

    With n the largest power of two up to H, the first n heads have slopes 2^(-8(h+1)/n), and the others every second
    one of 2n heads', 2^(-4(2(h-n)+1)/n), as in the authors' code.
    """

    def bias_rule(self, head: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        return -self.slope(head) * (q_position - k_position).abs()

    def slope(self, head: Tensor) -> Tensor:
        """Slopes of heads, computed rather than looked up so that kernels can inline the rule."""
        n = 1 << self.stack.num_heads.bit_length() - 1
        exponent = torch.where(head < n, -8 * (head + 1), -4 * (2 * (head - n) + 1))
        return torch.exp2(exponent.float() / n)
