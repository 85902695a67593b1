"""The order of samples: a bijection for any size, a function of its arguments only, and a shuffle."""

import numpy as np
import pytest

from txtrain.data.order import permute


def whole(size: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(size), size=size, seed=seed, epoch=epoch)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097, 100_000])
def test_every_sample_once(size):
    assert np.array_equal(np.sort(whole(size)), np.arange(size))


def test_any_part_agrees_with_the_whole():
    parts = [permute(np.array([i]), size=1000, seed=7, epoch=3) for i in range(1000)]
    assert np.array_equal(np.concatenate(parts), whole(1000, seed=7, epoch=3))


def test_the_order_is_the_same_on_every_platform():
    # Worked out with Python's own integers, which know no overflow and no byte order.
    def mix(value: int) -> int:
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        return value ^ value >> 31

    def reference(index: int, size: int, seed: int, epoch: int) -> int:
        half = max(1, ((size - 1).bit_length() + 1) // 2)
        start = mix((mix(seed) + epoch) % 2**64)
        keys = [mix((start + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(1, 9)]
        while True:
            left, right = index >> half, index % 2**half
            for key in keys:
                left, right = right, left ^ mix((right + key) % 2**64) % 2**half
            index = left * 2**half + right
            if index < size:
                return index

    expected = [reference(i, size=1000, seed=2**40, epoch=5) for i in range(1000)]
    assert whole(1000, seed=2**40, epoch=5).tolist() == expected


def test_epochs_and_seeds_differ():
    orders = {tuple(whole(100, seed, epoch)) for seed in range(10) for epoch in range(10)}
    assert len(orders) == 100


def test_each_sample_is_as_likely_at_each_place():
    size, runs = 10, 4000
    counts = np.zeros((size, size))
    for epoch in range(runs):
        counts[np.arange(size), whole(size, epoch=epoch)] += 1
    expected = runs / size
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert chi_squared < 81 + 5 * np.sqrt(2 * 81)  # (size - 1) ** 2 degrees of freedom, five standard deviations


def test_neighbours_come_apart():
    order = whole(100_000)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(100_000), order)[0, 1]) < 0.02


def test_a_position_outside_is_refused():
    with pytest.raises(IndexError):
        permute(np.array([10]), size=10, seed=0, epoch=0)
