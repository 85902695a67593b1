"""A penalty on scores that grows with distance, of a learned shape for each head."""

from typing import Literal

import torch
from torch import Tensor, nn

from txtrain.model.encoding.base import Encoding
from txtrain.model.shape import Stack

# Parameters start uniform, not below this, as in the authors' code.
SMALLEST = 0.01


class Kerple(Encoding):
    """KERPLE (https://arxiv.org/abs/2205.09921): two positive numbers a, r for each head, shared by all layers.

    `log`: -r · log(1 + a · |i - j|), r from U(0, 2); `power`: -a · |i - j|^r, 0 < r ≤ 2; a from U(0, 1). The authors
    clamp parameters back to their range after each step; here they are exponentials (r of `power`: a sigmoid times 2),
    which stay in range by themselves. On a grid the distance is the straight one.

    Args:
        stack: what it serves.
        variant: the shape.
    """

    on_grids = True

    def __init__(self, *, stack: Stack, variant: Literal["log", "power"] = "log") -> None:
        super().__init__(stack=stack)
        self.variant = variant
        rate = torch.rand(stack.num_heads).clamp(min=SMALLEST)
        shape = (2 * torch.rand(stack.num_heads)).clamp(SMALLEST, 2 - SMALLEST)
        self.rate = nn.Parameter(rate.log())
        self.shape = nn.Parameter(shape.log() if variant == "log" else (shape / 2).logit())

    def bias_rule(self, head: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        distance = (q_position - k_position).abs().float()
        rate, shape = self.rate.float().exp()[head], self.shape.float()
        if self.variant == "log":
            return -shape.exp()[head] * torch.log1p(rate * distance)
        return -rate * distance ** (2 * shape.sigmoid())[head]
