"""Keys and values of tokens that a decoder has read, so that generation computes each token once."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

KeysAndValues = tuple[Tensor, Tensor]
Held = Callable[[Callable[[], KeysAndValues]], KeysAndValues]
"""Takes what projects a pass's keys and values, and returns all that its queries attend to."""


class Buffer:
    """A tensor that is written piece by piece along one dimension, with memory taken ahead.

    Its first dimension are the sequences of the batch; one row may stand for all of them.

    Args:
        dim: the dimension that grows.
        capacity: its size at first; it doubles when that is used up.
    """

    def __init__(self, *, dim: int, capacity: int) -> None:
        self.dim, self.capacity = dim, capacity
        self.data: Tensor | None = None

    def write(self, new: Tensor, start: int) -> Tensor:
        """Puts `new` from index `start` on → all up to its end, as a view."""
        end = start + new.size(self.dim)
        if self.data is None or end > self.data.size(self.dim) or len(new) > len(self.data):
            self.data = self._grown(new, end)
        self.data.narrow(self.dim, start, end - start).copy_(new)
        return self.data.narrow(self.dim, 0, end)

    def select(self, rows: Tensor, length: int) -> None:
        """Row i becomes what row `rows[i]` was, up to index `length`."""
        if self.data is None:
            return
        chosen = self.data.narrow(self.dim, 0, length).index_select(0, rows)
        if len(chosen) != len(self.data):
            self.data = None
        self.write(chosen, 0)

    def _grown(self, new: Tensor, end: int) -> Tensor:
        while self.capacity < end:
            self.capacity *= 2
        shape = list(new.shape)
        shape[0] = len(new) if self.data is None else max(len(new), len(self.data))
        shape[self.dim] = self.capacity
        # A tensor made in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            data = torch.empty(shape, dtype=new.dtype, device=new.device)
        if self.data is not None:
            data.narrow(self.dim, 0, self.data.size(self.dim)).copy_(self.data)
        return data


class Appended:
    """Self-attention's: the keys and values of a pass come after those of earlier passes."""

    def __init__(self, cache: "Cache") -> None:
        self.cache = cache
        self.keys = Buffer(dim=2, capacity=cache.capacity)
        self.values = Buffer(dim=2, capacity=cache.capacity)

    def __call__(self, project: Callable[[], KeysAndValues]) -> KeysAndValues:
        keys, values = project()
        return self.keys.write(keys, self.cache.start), self.values.write(values, self.cache.start)

    def select(self, rows: Tensor) -> None:
        for buffer in (self.keys, self.values):
            buffer.select(rows, self.cache.length)


class Once:
    """Cross-attention's: the keys and values of the memory are those of the first pass."""

    def __init__(self) -> None:
        self.held: KeysAndValues | None = None

    def __call__(self, project: Callable[[], KeysAndValues]) -> KeysAndValues:
        if self.held is None:
            self.held = project()
        return self.held

    def select(self, rows: Tensor) -> None:
        if self.held is not None:
            self.held = self.held[0].index_select(0, rows), self.held[1].index_select(0, rows)


class LayerCache(NamedTuple):
    """What the attentions of one layer hold; nothing, without a cache."""

    own: Held | None
    cross: Held | None


NO_CACHE = LayerCache(None, None)


class Cache:
    """What a decoder keeps of the tokens it has read. Made by `new_cache` of the model, filled by its forward pass.

    Keys and values are (B, KV heads, capacity, head_dim) in each layer, allocated at the first pass in the type that
    attention computes in.

    Args:
        num_layers: layers of the decoder.
        batch: sequences B.
        capacity: tokens of each to take memory for; it doubles when they are more.
        settled_len: of the decoder's encoding.
    """

    def __init__(self, *, num_layers: int, batch: int, capacity: int = 256, settled_len: int | None = None) -> None:
        if batch < 1 or capacity < 1:
            raise ValueError(f"a cache of batch={batch} and capacity={capacity} holds nothing: give at least 1 of each")
        self.batch, self.capacity, self.settled_len = batch, capacity, settled_len
        self.length = 0
        self.start = 0
        self.memory: tuple[Tensor | None, Tensor | None] = None, None
        self._own = [Appended(self) for _ in range(num_layers)]
        self._cross = [Once() for _ in range(num_layers)]
        self.layers = [LayerCache(own, cross) for own, cross in zip(self._own, self._cross, strict=True)]
        self._inputs, self._positions, self._padding = (Buffer(dim=1, capacity=capacity) for _ in range(3))

    @property
    def next_position(self) -> Tensor | int:
        """(B or 1, 1): one after each sequence's latest."""
        held = self._positions.data
        return 0 if held is None or not self.length else held[:, self.length - 1 : self.length] + 1

    def admit(
        self, x: Tensor, positions: Tensor, padding: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Begins a pass over x (B, Q, D), whose positions (B or 1, Q) and padding (B, Q) come after those held.

        Returns what is to be computed and its positions, then the positions (B or 1, K) and padding (B, K) of all keys.
        That is x itself, or all tokens again if these make earlier ones' positions turn otherwise.
        """
        if torch.is_grad_enabled():
            raise ValueError("a cache keeps no gradients: call the model under torch.inference_mode()")
        if len(x) != self.batch:
            raise ValueError(
                f"the cache is for {self.batch} sequences, got {len(x)}: make it by new_cache(batch={len(x)})"
            )
        self.start = self.length
        k_positions = self._positions.write(positions, self.start)
        padding = self._all_padding(padding, x)
        if self.settled_len is not None:
            inputs = self._inputs.write(x, self.start)
            if int(k_positions.max()) >= self.settled_len:
                self.start = 0
                x, positions = inputs, k_positions
        return x, positions, k_positions, padding

    def commit(self, num_tokens: int) -> None:
        """Ends the pass: its tokens are held. One that failed before leaves the cache as it was."""
        self.length += num_tokens

    def remember(self, memory: Tensor | None, padding: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """The memory of the first pass that had one, and its padding."""
        if self.memory[0] is None:
            self.memory = memory, padding
        return self.memory

    def select(self, rows: Tensor) -> None:
        """Sequence i becomes what sequence `rows[i]` was, for beam search: rows (B',) may repeat and leave out."""
        for own, cross in zip(self._own, self._cross, strict=True):
            own.select(rows)
            cross.select(rows)
        self._inputs.select(rows, self.length)
        for buffer in (self._positions, self._padding):
            if buffer.data is not None and len(buffer.data) > 1:
                buffer.select(rows, self.length)
        memory, padding = (None if tensor is None else tensor.index_select(0, rows) for tensor in self.memory)
        self.memory = memory, padding
        self.batch = len(rows)

    def _all_padding(self, padding: Tensor | None, x: Tensor) -> Tensor | None:
        """(B or 1, K), or None while no pass has had any."""
        if padding is None:
            if self._padding.data is None:
                return None
            padding = torch.ones(1, x.size(1), dtype=torch.bool, device=x.device)
        elif self._padding.data is None and self.start:
            self._padding.write(padding.new_ones(len(padding), self.start), 0)
        return self._padding.write(padding, self.start)
