"""Batches by token count: each sample once, none too large, little padding, the same on any number of ranks."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from txtrain.data.buckets import GROWTH, SHORTEST, Buckets, bounds, cut
from txtrain.data.loader import EvaluationLoader, StepLoader
from txtrain.data.order import samples_of_step

LENGTHS = np.random.default_rng(0).geometric(0.05, size=700).astype(np.int64)


class Padded:
    """Samples of so many valid targets, padded to the longest of a batch."""

    def __len__(self):
        return len(LENGTHS)

    def batch(self, index, epoch=0):
        lengths = np.where(index >= 0, LENGTHS[index], 0)
        valid = np.arange(max(1, lengths.max())) < lengths[:, None]
        targets = np.where(valid, index[:, None], -100)
        return {"index": torch.from_numpy(index.copy()), "targets": torch.from_numpy(targets)}


def buckets(**options):
    return Buckets(LENGTHS, **({"batch_tokens": 512, "seed": 3} | options))


@pytest.mark.parametrize("batch_tokens", [1, 60, 512, 10**6])
def test_an_epoch_sees_each_sample_once_in_steps_that_are_not_too_large(batch_tokens):
    order = buckets(batch_tokens=batch_tokens)
    for epoch in (0, 1, 2):
        steps = [order.samples(epoch, step) for step in range(order.steps)]
        assert {found.epoch for found in steps} == {epoch}
        assert sorted(i for found in steps for i in found.samples.tolist()) == list(range(len(LENGTHS)))
        in_order = sorted(steps, key=lambda found: found.position)
        ends = list(itertools.accumulate(len(found.samples) for found in in_order))
        assert [found.position for found in in_order] == [0, *ends[:-1]]
        for found in steps:
            assert len(found.samples) == 1 or len(found.samples) * LENGTHS[found.samples].max() <= batch_tokens


def test_little_of_a_step_is_padding_and_few_steps_are_far_from_full():
    lengths = np.random.default_rng(0).geometric(0.05, size=20_000).astype(np.int64)
    order = Buckets(lengths, batch_tokens=2048, seed=3)
    parts = [lengths[order.samples(0, step).samples] for step in range(order.steps)]
    assert sum(len(part) * part.max() for part in parts) < 1.1 * lengths.sum()
    assert order.steps < 1.15 * lengths.sum() / 2048


def test_epochs_shuffle_the_samples_within_lengths_and_the_steps():
    order = buckets()
    first, second = ([order.samples(epoch, step).samples.tolist() for step in range(order.steps)] for epoch in (0, 1))
    assert first != second
    again = {frozenset(part) for part in first} & {frozenset(part) for part in second}
    assert len(again) < order.steps / 4, "long samples may have no others of their length"
    lengths = [LENGTHS[part].max() for part in first]
    assert lengths != sorted(lengths)
    assert first != [buckets(seed=4).samples(0, step).samples.tolist() for step in range(order.steps)]


def test_a_step_is_a_function_of_its_number():
    order, other = buckets(), pickle.loads(pickle.dumps(buckets()))
    for step in (1, 5, order.steps, order.steps + 1, 3 * order.steps):
        assert samples_of_step(order, step).samples.tolist() == samples_of_step(other, step).samples.tolist()
    assert samples_of_step(order, order.steps + 1).epoch == 1


@pytest.mark.parametrize("ranks, accumulation", [(1, 1), (1, 3), (2, 1), (2, 2), (3, 4)])
@pytest.mark.parametrize("kind", [StepLoader, EvaluationLoader])
def test_ranks_share_the_same_steps(kind, ranks, accumulation):
    order = buckets(batch_tokens=300)
    group = [
        list(kind(Padded(), order=order, micro=None, accumulation=accumulation, rank=rank, ranks=ranks))
        for rank in range(ranks)
    ]
    assert {len(batches) for batches in group} == {order.steps * accumulation}
    for step in range(order.steps):
        mine = slice(step * accumulation, (step + 1) * accumulation)
        parts = [batch for batches in group for batch in batches[mine]]
        index = torch.cat([batch["index"] for batch in parts])
        assert index[index >= 0].tolist() == order.samples(0, step).samples.tolist()
        assert len({len(batch["index"]) for batch in parts}) == 1
        for batches in group:
            valid = sum(int((batch["targets"] != -100).sum()) for batch in batches[mine])
            assert {int(batch["step_tokens"]) for batch in batches[mine]} == {valid}


@pytest.mark.parametrize("batch_size", [1, 7, 10**6])
def test_a_step_has_at_most_so_many_samples_too(batch_size):
    order = buckets(batch_size=batch_size)
    steps = [order.samples(2, step).samples for step in range(order.steps)]
    assert sorted(i for found in steps for i in found.tolist()) == list(range(len(LENGTHS)))
    assert all(len(found) <= batch_size for found in steps)
    assert all(len(found) == 1 or len(found) * LENGTHS[found].max() <= 512 for found in steps)
    if batch_size == 10**6:
        assert order.starts.tolist() == buckets().starts.tolist()


def test_bounds_grow_by_a_tenth():
    found = bounds(500)
    assert found[0] == SHORTEST and found[-2] < 500 <= found[-1]
    assert all(b == a + 1 or b == int(a * GROWTH) for a, b in itertools.pairwise(found.tolist()))


def test_cuts_by_hand():
    assert cut(np.array([2, 2, 3, 3, 9]), 6).tolist() == [0, 2, 4, 5]
    assert cut(np.array([2, 2, 2, 3, 9]), 9, count=2).tolist() == [0, 2, 4, 5]
    assert cut(np.array([], dtype=np.int64), 6).tolist() == [0]
