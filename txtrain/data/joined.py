"""The samples of several data sets as those of one: batches whose rows come from different sets."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtrain.data.interleave import Numbers
from txtrain.data.loader import Batch, Samples, units_read
from txtrain.data.packing import PADDING
from txtrain.errors import UserError


class JoinedSamples:
    """Samples by their `Numbers`, which also say in which pass over its set each is read.

    Args:
        sets: samples of each set, by its name.
    """

    def __init__(self, sets: Mapping[str, Samples]) -> None:
        self.names, self.sets = list(sets), list(sets.values())
        self.numbers = Numbers([len(samples) for samples in self.sets])

    def __len__(self) -> int:
        return self.numbers.size

    def batch(self, index: NDArray[np.int64], epoch: int = 0) -> Batch:
        """The samples with these numbers, an empty row for `PADDING`; `index` (B,) has the numbers.

        What is random in a sample follows from the pass over its set: the epoch of the whole says nothing.
        """
        sets, passes, own = self.numbers.split(np.where(index == PADDING, 0, index))
        real = index != PADDING
        groups = sorted(set(zip(sets[real].tolist(), passes[real].tolist(), strict=True))) or [(0, 0)]
        rows, batches = [], []
        for place, (which, number) in enumerate(groups):
            mine = real & (sets == which) & (passes == number) | (~real if place == 0 else False)
            rows.append(np.flatnonzero(mine))
            batches.append(self.sets[which].batch(np.where(real, own, PADDING)[mine], number))
        filled = [getattr(self.sets[which], "filled", {}) for which, _ in groups]
        return join(rows, batches, filled) | {"index": torch.from_numpy(index.astype(np.int64))}

    def check(self) -> None:
        """Refuses sets whose samples cannot be rows of one batch."""
        first = self.sets[0].batch(np.zeros(1, dtype=np.int64))
        for name, samples in zip(self.names[1:], self.sets[1:], strict=True):
            other = samples.batch(np.zeros(1, dtype=np.int64))
            filled = [getattr(each, "filled", {}) for each in (self.sets[0], samples)]
            try:
                join([np.array([0]), np.array([1])], [first, other], filled)
            except ValueError as error:
                raise UserError(
                    f"samples of data.sets.{self.names[0]} and of data.sets.{name} cannot be in one batch: {error}"
                ) from error


def join(rows: Sequence[NDArray[np.int64]], batches: Sequence[Batch], filled: Sequence[Mapping[str, float]]) -> Batch:
    """One batch of several.

    Args:
        rows: where those of each batch go.
        batches: tensors (rows, ...).
        filled: for each batch, by the name of a tensor, what stands where it has nothing and another batch has.

    Raises:
        ValueError: a tensor is missing, or has another shape, and nothing is known to stand there.
    """
    if len(batches) == 1:
        return dict(batches[0])
    size, joined = sum(map(len, rows)), {}
    for name in dict.fromkeys(name for batch in batches for name in batch):
        if name == "num_tokens":
            joined[name] = _counts(rows, batches, size)
            continue
        shapes = [batch[name].shape[1:] for batch in batches if name in batch]
        shape = tuple(map(max, zip(*shapes, strict=True)))
        like = next(batch[name] for batch in batches if name in batch)
        places: tuple[slice | Tensor, ...]
        whole = like.new_zeros((size, *shape))
        for row, batch, fill in zip(rows, batches, filled, strict=True):
            tensor = batch.get(name)
            if (tensor is None or tensor.shape[1:] != shape) and name not in fill:
                got = "none" if tensor is None else " × ".join(map(str, tensor.shape[1:]))
                raise ValueError(f"{name} is {got} in one of them and {' × '.join(map(str, shape))} in the other")
            there = torch.from_numpy(row)
            if name in fill:
                whole[there] = fill[name]
            if tensor is not None:
                places = (there, *(slice(length) for length in tensor.shape[1:]))
                whole[places] = tensor
        joined[name] = whole
    return joined


def _counts(rows: Sequence[NDArray[np.int64]], batches: Sequence[Batch], size: int) -> Tensor:
    """`num_tokens` (B,), which are the targets where a batch does not say otherwise."""
    counts = torch.zeros(size, dtype=torch.int64)
    for row, batch in zip(rows, batches, strict=True):
        counts[torch.from_numpy(row)] = units_read(batch).to(torch.int64)
    return counts
