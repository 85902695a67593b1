"""One trained vector for each position."""

import torch
from torch import Tensor, nn

from txtrain.model.encoding.base import Encoding
from txtrain.model.grid import Grid, on_grid
from txtrain.model.shape import Stack

SHARPNESS = -0.75  # of the cubic, as in `torch.nn.functional.interpolate`


class Learned(Encoding):
    """A table of position vectors, added to the token vectors (GPT-2, BERT; https://arxiv.org/abs/1810.04805).

    On a grid (ViT, https://arxiv.org/abs/2010.11929) the table has the rows of the prefix, then those of the grid.
    Between its positions, where images have another size, vectors are interpolated bicubically.

    A position outside the table is an error. It is looked for where that is free: in the length of the input, and on
    CPUs in the positions themselves. On a GPU, reading them would wait for all queued work at each step; there the
    lookup's own device-side assertion ends the process.

    Args:
        stack: what it serves.
        max_len: positions in the table. Default: the longest sequence in training.
        offset: rows before the first position, which are never read (RoBERTa and BART have 2).
    """

    on_grids = True

    def __init__(self, *, stack: Stack, max_len: int | None = None, offset: int = 0) -> None:
        super().__init__(stack=stack)
        if stack.grid is not None and (max_len is not None or offset):
            raise ValueError(
                "encoding.max_len and encoding.offset are for rows of tokens, and these stand on a grid: leave both out"
            )
        if max_len is not None and max_len < stack.max_len:
            raise ValueError(
                f"the table of learned positions has encoding.max_len={max_len} rows, less than "
                f"data.seq_len={stack.max_len}: set data.seq_len={max_len}"
            )
        if offset < 0:
            raise ValueError(f"encoding.offset is {offset}: give 0 or more, such as encoding.offset=2")
        self.offset = offset
        self.table = nn.Embedding(offset + (max_len or stack.max_len), stack.dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.stack.grid is not None:
            return x + self._interpolated(positions, self.stack.grid).to(x.dtype)
        self._refuse_beyond_table(positions)
        return x + self.table(positions + self.offset).to(x.dtype)

    def _interpolated(self, positions: Tensor, grid: Grid) -> Tensor:
        """Vectors (B or 1, T, D) at positions (B or 1, T, axes), each from 4 rows along each axis, or 1 at integers."""
        row = torch.zeros_like(positions[..., :1], dtype=torch.int64)
        share = torch.ones_like(row, dtype=torch.float32)
        for size, place in zip(grid.size, positions.unbind(-1), strict=True):
            near, part = cubic(place) if place.is_floating_point() else (place[..., None], torch.ones_like(share))
            row = (row[..., :, None] * size + near.clamp(0, size - 1)[..., None, :]).flatten(-2)
            share = (share[..., :, None] * part[..., None, :]).flatten(-2)
        inside, before = on_grid(positions)[..., None], (-1 - positions[..., :1]).long()
        row = torch.where(inside, row + grid.prefix, before)
        share = torch.where(inside, share, 1 / share.size(-1))
        return (self.table(row) * share[..., None]).sum(-2)

    def _refuse_beyond_table(self, positions: Tensor) -> None:
        longest = positions.size(1)
        if positions.device.type == "cpu":
            longest = int(positions.max()) + 1
        available = self.table.num_embeddings - self.offset
        if longest > available:
            raise ValueError(
                f"position {longest - 1} is outside the table of {available} learned positions: "
                f"train with encoding.max_len={longest} or with an encoding that extrapolates, such as encoding=rope"
            )


def cubic(place: Tensor) -> tuple[Tensor, Tensor]:
    """The 4 integers around each place (...) and their shares (..., 4): convolution with Keys' cubic kernel.

    https://doi.org/10.1109/TASSP.1981.1163711
    """
    first, a = place.floor(), SHARPNESS
    past = place - first
    near = torch.stack((past, 1 - past), dim=-1)  # distances of the two between which it lies
    far = near + 1
    inner = ((a + 2) * near - (a + 3)) * near.square() + 1
    outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    steps = torch.arange(-1, 3, device=place.device)
    shares = torch.stack((outer[..., 0], inner[..., 0], inner[..., 1], outer[..., 1]), dim=-1)
    return first.long()[..., None] + steps, shares
