"""A learned bias for each head and bucket of distances."""

import math

import torch
from torch import Tensor, nn

from txtrain.model.encoding.base import Axes, Encoding
from txtrain.model.grid import off_axis
from txtrain.model.shape import Stack


class T5(Encoding):
    """T5's relative bias (https://arxiv.org/abs/1910.10683): buckets of one distance each, then ever wider ones.

    Causal stacks spend all buckets on the past, others half on each side. Half of a side's buckets hold one distance
    each, the others grow logarithmically. All layers share the table. T5 itself does not scale its scores
    (attention.scale=1).

    On a grid the bias is the sum of one for each axis, as if each had a table of its own (fractions of positions are
    rounded); to and from tokens that are not on it there are three more, as in BEiT (https://arxiv.org/abs/2106.08254).

    Args:
        stack: what it serves.
        num_buckets: rows of the table, for each axis.
        max_distance: distances from here on share the last bucket.
    """

    on_grids = True

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
        self.num_buckets = num_buckets
        rows = num_buckets if stack.grid is None else num_buckets * stack.axes + 3
        self.table = nn.Embedding(rows, stack.num_heads)
        nn.init.normal_(self.table.weight, std=stack.dim**-0.5)

    def bias_rule(self, head: Tensor, q_position: Tensor, k_position: Tensor) -> Tensor:
        return self.table.weight.float()[self.bucket(q_position, k_position), head]

    def grid_rule(self, head: Tensor, q_position: Axes, k_position: Axes) -> Tensor:
        rows = self.rows(q_position, k_position)
        return torch.stack([self.table.weight.float()[row, head] * share for row, share in rows]).sum(0)

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        """The rule, but the bucket is found once for all heads, and the gradient is summed five times faster."""
        if self.stack.grid is None:
            return self._values(self.bucket(q_positions[:, :, None], k_positions[:, None, :]))
        q_axes = [place[:, :, None] for place in q_positions.unbind(-1)]
        rows = self.rows(q_axes, [place[:, None, :] for place in k_positions.unbind(-1)])
        return torch.stack([self._values(row) * share[:, None] for row, share in rows]).sum(0)

    def _values(self, bucket: Tensor) -> Tensor:
        """Rows of the table (B or 1, Q, K) → (B or 1, H, Q, K)."""
        values = self.table.weight.float().t().index_select(1, bucket.flatten())
        return values.unflatten(1, bucket.shape).transpose(0, 1)

    def rows(self, q_position: Axes, k_position: Axes) -> list[tuple[Tensor, Tensor]]:
        """On a grid, for each axis the row of the table and its share in the sum, elementwise."""
        off = off_axis(q_position[0]) + 2 * off_axis(k_position[0]).long()
        found = []
        for axis, (q, k) in enumerate(zip(q_position, k_position, strict=True)):
            ahead = (k - q).round().long()
            row = axis * self.num_buckets + self.bucket(torch.zeros_like(ahead), ahead)
            row = torch.where(off > 0, self.num_buckets * len(q_position) + off - 1, row)
            found.append((row, torch.where(off > 0, 1 / len(q_position), 1.0)))
        return found

    def bucket(self, q_position: Tensor, k_position: Tensor) -> Tensor:
        """Row of the table, for integer positions that broadcast."""
        ahead = k_position - q_position
        distance = (-ahead).clamp(min=0) if self.stack.causal else ahead.abs()
        # The same expression as T5's, in float32, so that distances at a bucket's edge fall on the same side.
        octave = torch.log(distance.clamp(min=1).float() / self.exact) / math.log(self.max_distance / self.exact)
        wide = (self.exact + (octave * (self.side - self.exact)).long()).clamp(max=self.side - 1)
        bucket = torch.where(distance < self.exact, distance, wide)
        return bucket if self.stack.causal else bucket + self.side * (ahead > 0)
