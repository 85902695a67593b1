"""The order of samples of which each label is equally frequent: `data.sampling=balanced`."""

import numpy as np
from numpy.typing import NDArray

from txtrain.data.interleave import Interleaved, Numbers
from txtrain.data.order import StepSamples

SEEDS = 1_000_003  # between those of labels


class InTurn:
    """One after the other, over and over.

    Args:
        sets: how many there are.
    """

    def __init__(self, sets: int) -> None:
        self.sets = sets

    def find(self, turns: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Turns, counted from 0 → the set of each, and how many turns that set had before."""
        before, sets = np.divmod(turns, self.sets)
        return sets, before


class Balanced:
    """Each label has its turn as often as any other; it then gives the next sample of an endless order of its own.

    After any number of samples two labels differ by less than two. An epoch has as many samples as there are in all, so
    that some of a frequent label wait for a later one, and those of a rare one come more than once. All of it is a
    function of (seed, epoch, step) over all ranks, which then share out a step's samples as ever.

    Args:
        labels: (N,) of each sample, by number.
        batch_size: samples per step.
        seed: of the order.
    """

    def __init__(self, labels: NDArray[np.integer], *, batch_size: int, seed: int) -> None:
        numbers = np.asarray(labels, dtype=np.int64)
        counts = np.bincount(numbers)
        sizes = counts[counts > 0].tolist()
        self._by_label = np.argsort(numbers, kind="stable")  # of the first label, then of the second, ...
        seeds = [seed + SEEDS * which for which in range(len(sizes))]
        self._order = Interleaved(InTurn(len(sizes)), Numbers(sizes), batch_size=batch_size, seeds=seeds)
        self.steps = self._order.steps

    def samples(self, epoch: int, step: int) -> StepSamples:
        """What a step of an epoch sees, over all ranks."""
        found = self._order.samples(epoch, step)
        return found._replace(samples=self._by_label[found.samples % len(self._by_label)])
