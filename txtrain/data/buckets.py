"""The order of samples of different lengths: those of a step are about as long, so that little of it is padding."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from txtrain.data.order import StepSamples, permute

SHORTEST = 8  # tokens up to which lengths are not told apart
GROWTH = 1.1  # of a bucket's bound over the one before it, as in tensor2tensor


class Buckets:
    """Optimizer steps of at most `batch_tokens` tokens, padding included, of samples of about one length.

    Lengths are rounded up to the bound of a bucket, bounds grow by a tenth. In each epoch the samples are shuffled,
    put into the order of their buckets, and cut into steps, which then are shuffled too. As rounded lengths in order
    are the same in every epoch, so is the number of steps. All is a function of (seed, epoch, step).

    Args:
        lengths: (N,) of each sample, in tokens.
        batch_tokens: of a step over all devices: samples times the bound of the longest one's bucket. A sample that is
            longer is a step of its own.
        seed: of both orders.
        batch_size: most samples of a step. Default: as many as `batch_tokens` lets in.
    """

    def __init__(
        self, lengths: NDArray[np.int64], *, batch_tokens: int, seed: int, batch_size: int | None = None
    ) -> None:
        self.size, self.seed = len(lengths), seed
        self.bounds = bounds(int(lengths.max(initial=1)))
        self.bucket = np.searchsorted(self.bounds, lengths)
        self.starts = cut(self.bounds[np.sort(self.bucket)], batch_tokens, batch_size)
        self.steps = len(self.starts) - 1
        self._sorted = lru_cache(maxsize=2)(self._in_buckets)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_sorted"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._sorted = lru_cache(maxsize=2)(self._in_buckets)

    def samples(self, epoch: int, step: int) -> StepSamples:
        """What a step of an epoch sees, over all ranks."""
        which = int(permute(np.array([step]), size=self.steps, seed=self.seed, epoch=epoch)[0])
        first, last = self.starts[which : which + 2]
        return StepSamples(epoch, int(first), self._sorted(epoch)[first:last])

    def _in_buckets(self, epoch: int) -> NDArray[np.int64]:
        shuffled = permute(np.arange(self.size), size=self.size, seed=self.seed, epoch=epoch)
        return shuffled[np.argsort(self.bucket[shuffled], kind="stable")]


def bounds(longest: int) -> NDArray[np.int64]:
    """Bounds of buckets, from `SHORTEST` to at least `longest`."""
    found = [SHORTEST]
    while found[-1] < longest:
        found.append(max(found[-1] + 1, int(found[-1] * GROWTH)))
    return np.array(found, dtype=np.int64)


def cut(lengths: NDArray[np.int64], most: int, count: int | None = None) -> NDArray[np.int64]:
    """Where to cut ascending lengths so that no part, times its last length, has more than `most`; with both ends.

    With `count` no part has more than so many either.
    """
    starts = [0]
    for place, length in enumerate(lengths.tolist()):
        size = place + 1 - starts[-1]
        if size > 1 and (size * length > most or (count is not None and size > count)):
            starts.append(place)
    return np.array([*starts, len(lengths)] if len(lengths) else starts, dtype=np.int64)
