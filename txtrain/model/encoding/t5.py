"""A learned bias for each head and bucket of distances."""

import math

import torch
from torch import Tensor, nn

from txtrain.model.encoding.base import Encoding
from txtrain.model.shape import Stack


class T5(Encoding):
    """T5's relative bias (https://arxiv.org/abs/1910.10683): buckets of one distance each, then ever wider ones.

    Causal stacks spend all buckets on the past, others half on each side. Half of a side's buckets hold one distance
    each, the others grow logarithmically. All layers share the table. T5 itself does not scale its scores
    (attention.scale=1).

    Args:
        stack: what it serves.
        num_buckets: rows of the table.
        max_distance: distances from here on share the last bucket.
    """

    def __init__(self, *, stack: Stack, num_buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__(stack=stack)
        sides = 1 if stack.causal else 2
        if num_buckets < 2 * sides or num_buckets % sides:
            raise ValueError(
                f"encoding.num_buckets is {num_buckets}: give an even number from 4 on, such as encoding.num_buckets=32"
            )
        self.side = num_buckets // sides
        self.exact = self.side // 2
        if max_distance <= self.exact:
            raise ValueError(
                f"encoding.max_distance={max_distance} is reached by the {self.exact} buckets of one distance each: "
                f"set encoding.max_distance={4 * self.side}"
            )
        self.max_distance = max_distance
        self.table = nn.Embedding(num_buckets, stack.num_heads)
        nn.init.normal_(self.table.weight, std=stack.dim**-0.5)

    def bias_rule(self, head: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        return self.table.weight.float()[self.bucket(q_position, k_position), head]

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """The rule, but the bucket is found once for all heads, and the gradient is summed five times faster."""
        bucket = self.bucket(q_positions[:, :, None], k_positions[:, None, :])
        values = self.table.weight.float().t().index_select(1, bucket.flatten())
        return values.unflatten(1, bucket.shape).transpose(0, 1)

    def bucket(self, q_position: Tensor, k_position: Tensor) -> Tensor:
        """Row of the table, for integer positions that broadcast."""
        ahead = k_position - q_position
        distance = (-ahead).clamp(min=0) if self.stack.causal else ahead.abs()
        # The same expression as T5's, in float32, so that distances at a bucket's edge fall on the same side.
        octave = torch.log(distance.clamp(min=1).float() / self.exact) / math.log(self.max_distance / self.exact)
        wide = (self.exact + (octave * (self.side - self.exact)).long()).clamp(max=self.side - 1)
        bucket = torch.where(distance < self.exact, distance, wide)
        return bucket if self.stack.causal else bucket + self.side * (ahead > 0)
