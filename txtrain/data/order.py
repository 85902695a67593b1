"""The order of training samples: a permutation that is computed, never stored.

A Feistel network over 2k bits is a bijection of range(4**k) whatever its round function; results outside range(n) are
sent through again until they fall inside ("cycle walking", https://doi.org/10.1007/3-540-45760-7_9). So the sample at a
position depends on nothing but (seed, epoch, position), and any rank, worker or resumed run can ask for any part of it.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8


def permute(index: NDArray[np.integer], *, size: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Samples at the given positions of the epoch's permutation of range(size)."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _keys(seed, epoch)
    result = np.array(index, dtype=np.uint64)
    if result.size and int(result.max()) >= size:
        raise IndexError(f"position {int(result.max())} of {size} samples")
    walking = np.ones(result.shape, dtype=bool)
    while walking.any():
        result[walking] = _feistel(result[walking], half, keys)
        walking = result >= size
    return result.astype(np.int64)


class StepSamples(NamedTuple):
    """What an optimizer step is trained on: samples at the positions from `position` on of an epoch's permutation."""

    epoch: int
    position: int
    samples: NDArray[np.int64]


def samples_of_step(step: int, *, size: int, batch_size: int, seed: int) -> StepSamples:
    """What optimizer step 1, 2, ... of a run sees of `size` samples, over all ranks. The last of an epoch is short."""
    epoch, number = divmod(step - 1, -(-size // batch_size))
    position = number * batch_size
    place = np.arange(position, min(position + batch_size, size))
    return StepSamples(epoch, position, permute(place, size=size, seed=seed, epoch=epoch))


def _feistel(value: NDArray[np.uint64], half: int, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    low = np.uint64((1 << half) - 1)
    left, right = value >> np.uint64(half), value & low
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & low)
    return (left << np.uint64(half)) | right


@lru_cache(maxsize=4)
def _keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    """One key per round."""
    start = _mix(_mix(np.array([seed % 2**64], dtype=np.uint64)) + np.uint64(epoch))
    return _mix(start + np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (https://doi.org/10.1145/2660193.2660195), modulo 2**64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
