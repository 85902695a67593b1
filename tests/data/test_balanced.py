"""`data.sampling=balanced`: each label equally often, the same on any number of devices and after a resume."""

import pickle
from collections import Counter

import numpy as np
import pytest

from txtrain.data.balanced import Balanced
from txtrain.data.order import samples_of_step

LABELS = np.array([0] * 60 + [3] * 5 + [1] * 20 + [0] * 8)  # none of label 2
STEPS = -(-len(LABELS) // 10)


def seen(order: Balanced, steps: int) -> list[int]:
    return [int(sample) for step in range(1, steps + 1) for sample in samples_of_step(order, step).samples]


def test_labels_are_equally_frequent_at_every_step_and_in_every_epoch() -> None:
    order = Balanced(LABELS, batch_size=10, seed=0)
    assert order.steps == STEPS
    for steps in range(1, 5 * STEPS):
        counts = Counter(LABELS[seen(order, steps)].tolist())
        assert set(counts) == {0, 1, 3}
        assert max(counts.values()) - min(counts.values()) <= 1
    assert all(len(set(LABELS[samples_of_step(order, step).samples].tolist())) == 3 for step in range(1, 3 * STEPS))


def test_each_label_gives_all_its_samples_before_any_again() -> None:
    found = seen(Balanced(LABELS, batch_size=10, seed=0), 7 * STEPS)
    for label in (0, 1, 3):
        mine, own = np.flatnonzero(label == LABELS), [sample for sample in found if LABELS[sample] == label]
        assert len(own) > len(mine)
        whole = len(own) // len(mine) * len(mine)
        for first in range(0, whole, len(mine)):
            assert sorted(own[first : first + len(mine)]) == mine.tolist()
    passes = [tuple(sample for sample in found if LABELS[sample] == 3)[first : first + 5] for first in range(0, 50, 5)]
    assert len(set(passes)) > 5, "each pass is shuffled anew"


def test_it_is_a_function_of_seed_epoch_and_step() -> None:
    order = Balanced(LABELS, batch_size=10, seed=7)
    again = pickle.loads(pickle.dumps(order))
    for step in (3 * STEPS, 1, STEPS + 2):
        assert samples_of_step(order, step).samples.tolist() == samples_of_step(again, step).samples.tolist()
    assert seen(order, STEPS) != seen(Balanced(LABELS, batch_size=10, seed=8), STEPS)


@pytest.mark.parametrize("batch", [1, 3, 93, 200])
def test_an_epoch_has_as_many_samples_as_there_are(batch: int) -> None:
    order = Balanced(LABELS, batch_size=batch, seed=0)
    assert len(seen(order, order.steps)) == len(LABELS)
