"""The order of training samples: a permutation that is computed, never stored.

A Feistel network over 2k bits is a bijection of range(4**k) whatever its round function; results outside range(n) are
sent through again until they fall inside ("cycle walking", https://doi.org/10.1007/3-540-45760-7_9). So the sample at a
position depends on nothing but (seed, epoch, position), and any rank, worker or resumed run can ask for any part of it.
"""

from functools import lru_cache
from typing import NamedTuple, Protocol

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


def sample_generator(seed: int, epoch: int, index: int, *use: int) -> np.random.Generator:
    """Of all that is random in a sample (masking, augmentation), on any rank, in any worker, and after a resume.

    A number from 1 on as `use` gives another generator, for something else in the same sample.
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, index, *use])))


class StepSamples(NamedTuple):
    """What an optimizer step is trained on: samples at the positions from `position` on of an epoch's permutation."""

    epoch: int
    position: int
    samples: NDArray[np.int64]


class Order(Protocol):
    """Which samples the optimizer steps of an epoch see, over all ranks: a pure function of (epoch, step)."""

    @property
    def steps(self) -> int:
        """In every epoch."""

    def samples(self, epoch: int, step: int) -> StepSamples:
        """What a step of an epoch sees, both counted from 0."""


class Shuffled:
    """Equally many samples in each step, but for the last of an epoch, in an order that each epoch has for itself.

    Args:
        size: number of samples.
        batch_size: samples per step.
        seed: of the order.
    """

    def __init__(self, *, size: int, batch_size: int, seed: int) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.steps = -(-size // batch_size)

    def samples(self, epoch: int, step: int) -> StepSamples:
        position = step * self.batch_size
        place = np.arange(position, min(position + self.batch_size, self.size))
        return StepSamples(epoch, position, permute(place, size=self.size, seed=self.seed, epoch=epoch))


def samples_of_step(order: Order, step: int) -> StepSamples:
    """What optimizer step 1, 2, ... of a run sees, over all ranks."""
    return order.samples(*divmod(step - 1, order.steps))


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


def fair_sample(size: int, most: int) -> list[int]:
    """A few of `size` samples, always the same ones, and not all from the beginning, where classes may be sorted."""
    return permute(np.arange(min(most, size)), size=size, seed=0, epoch=0).tolist()
