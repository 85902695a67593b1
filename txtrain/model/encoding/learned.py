"""One trained vector for each position."""

from torch import Tensor, nn

from txtrain.model.encoding.base import Encoding
from txtrain.model.shape import Stack


class Learned(Encoding):
    """A table of position vectors, added to the token vectors (GPT-2, BERT; https://arxiv.org/abs/1810.04805).

    A position outside the table is an error. It is looked for where that is free: in the length of the input, and on
    CPUs in the positions themselves. On a GPU, reading them would wait for all queued work at each step; there the
    lookup's own device-side assertion ends the process.

    Args:
        stack: what it serves.
        max_len: positions in the table. Default: the longest sequence in training.
        offset: rows before the first position, which are never read (RoBERTa and BART have 2).
    """

    def __init__(self, *, stack: Stack, max_len: int | None = None, offset: int = 0) -> None:
        super().__init__(stack=stack)
        if max_len is not None and max_len < stack.max_len:
            raise ValueError(
                f"encoding.max_len={max_len} is less than data.seq_len={stack.max_len}: "
                f"set encoding.max_len={stack.max_len} or leave it out"
            )
        if offset < 0:
            raise ValueError(f"encoding.offset is {offset}: give 0 or more, such as encoding.offset=2")
        self.offset = offset
        self.table = nn.Embedding(offset + (max_len or stack.max_len), stack.dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        self._refuse_beyond_table(positions)
        return x + self.table(positions + self.offset).to(x.dtype)

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
