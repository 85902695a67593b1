"""The order of samples of several data sets: whose turn it is, and which sample that set then gives.

Each set has an endless order of its own: all of its samples, shuffled; then all of them again, shuffled anew; and so
on. A mixture only says how often which set gives its next one. All of it is a function of (seed, epoch, step).
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import lcm
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from txtrain.data.order import Order, StepSamples, permute

PARTS = 10_000  # weights are rounded to so many parts of the whole, where fewer do not hold them exactly

Integers = NDArray[np.int64]


class Turns(Protocol):
    """Whose turn it is."""

    def find(self, turns: Integers) -> tuple[Integers, Integers]:
        """Turns, counted from 0 over all epochs → the set of each, and how many turns that set had before."""


class Weighted:
    """Turns by weight, evenly: after any number t of turns, a set of weight w has had more than t w - 1 and less than
    t w + 1, by Tijdeman's algorithm (https://doi.org/10.1016/0012-365X(80)90269-1).

    Args:
        weights: of the sets, positive, of which only the ratios matter.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.parts = parts(weights)
        self.period = sum(self.parts)
        self._turns, self._before = _round(tuple(self.parts))

    def find(self, turns: Integers) -> tuple[Integers, Integers]:
        rounds, places = np.divmod(turns, self.period)
        sets = self._turns[places]
        return sets, rounds * np.array(self.parts)[sets] + self._before[places]


class Together:
    """Each epoch is a turn for each sample of each set, in an order that each epoch has for itself.

    Args:
        sizes: of the sets.
        seed: of the order.
    """

    def __init__(self, sizes: Sequence[int], *, seed: int) -> None:
        self.sizes, self.seed = np.array(sizes, dtype=np.int64), seed
        self.ends = np.cumsum(self.sizes)

    def find(self, turns: Integers) -> tuple[Integers, Integers]:
        size = int(self.ends[-1])
        epochs, places = np.divmod(turns, size)
        shuffled = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            there = epochs == epoch
            shuffled[there] = permute(places[there], size=size, seed=self.seed, epoch=epoch)
        sets = np.searchsorted(self.ends, shuffled, side="right")
        return sets, epochs * self.sizes[sets] + shuffled - (self.ends - self.sizes)[sets]


class Numbers:
    """One number for a sample of a set in one of the passes over that set.

    Args:
        sizes: of the sets.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = np.array(sizes, dtype=np.int64)
        self.size = int(self.sizes.sum())
        self.ends = np.cumsum(self.sizes)

    def of(self, which: int, passes: int, samples: Integers) -> Integers:
        """Of samples of one set."""
        return passes * self.size + int(self.ends[which] - self.sizes[which]) + samples

    def split(self, numbers: Integers) -> tuple[Integers, Integers, Integers]:
        """The set, the pass over it, and the sample that each number means."""
        passes, places = np.divmod(numbers, self.size)
        sets = np.searchsorted(self.ends, places, side="right")
        return sets, passes, places - (self.ends - self.sizes)[sets]


class Interleaved:
    """Equally many samples in each step, each from the set whose turn it is.

    An epoch is as many samples as the sets have together; the sets go on in the next where they were.

    Args:
        turns: whose turn it is.
        numbers: of the samples.
        batch_size: samples per step.
        seeds: of each set's own order.
    """

    def __init__(self, turns: Turns, numbers: Numbers, *, batch_size: int, seeds: Sequence[int]) -> None:
        self.turns, self.numbers, self.batch_size, self.seeds = turns, numbers, batch_size, seeds
        self.steps = -(-numbers.size // batch_size)

    def samples(self, epoch: int, step: int) -> StepSamples:
        position, size = step * self.batch_size, self.numbers.size
        places = np.arange(position, min(position + self.batch_size, size))
        sets, before = self.turns.find(epoch * size + places)
        passes, own = np.divmod(before, self.numbers.sizes[sets])
        found = np.empty_like(own)
        for which, number in sorted(set(zip(sets.tolist(), passes.tolist(), strict=True))):
            there = (sets == which) & (passes == number)
            of_set = {"size": int(self.numbers.sizes[which]), "seed": self.seeds[which]}
            found[there] = self.numbers.of(which, number, permute(own[there], epoch=number, **of_set))
        return StepSamples(epoch, position, found)


class Alternating:
    """Each step is one of the set whose turn it is, as that set's own order has it.

    An epoch is as many steps as passes over all sets have together; the sets go on in the next where they were.

    Args:
        turns: whose turn it is.
        numbers: of the samples.
        orders: of the sets.
    """

    def __init__(self, turns: Turns, numbers: Numbers, *, orders: Sequence[Order]) -> None:
        self.turns, self.numbers, self.orders = turns, numbers, orders
        self.steps = sum(order.steps for order in orders)

    def samples(self, epoch: int, step: int) -> StepSamples:
        sets, before = self.turns.find(np.array([epoch * self.steps + step]))
        which = int(sets[0])
        passes, own = divmod(int(before[0]), self.orders[which].steps)
        found = self.orders[which].samples(passes, own)
        return StepSamples(epoch, found.position, self.numbers.of(which, passes, found.samples))


def parts(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers of parts: exactly if `PARTS` or fewer do, else rounded, and each has at least one."""
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    whole = lcm(*(share.denominator for share in shares))
    if whole <= PARTS:
        return [int(share * whole) for share in shares]
    return [max(1, round(share * PARTS)) for share in shares]


@lru_cache(maxsize=16)
def _round(shares: tuple[int, ...]) -> tuple[Integers, Integers]:
    """The turns of a round in which each set has its parts, and how many it had before in that round."""
    whole, slack = sum(shares), max(1, 2 * len(shares) - 2)
    had, turns, before = [0] * len(shares), [], []
    for turn in range(1, whole + 1):
        due = [share * turn - whole * count for share, count in zip(shares, had, strict=True)]  # in parts of a turn
        ready = [which for which, share in enumerate(due) if slack * share >= whole]
        # Of those that may, the one that would first be late.
        chosen = min(ready, key=lambda which: Fraction(whole * (slack - 1) - slack * due[which], shares[which]))
        turns.append(chosen)
        before.append(had[chosen])
        had[chosen] += 1
    return np.array(turns, dtype=np.int64), np.array(before, dtype=np.int64)
