"""The order of mixtures: shares by weight at every moment, each set whole before it begins anew, on any ranks."""

from collections import defaultdict

import numpy as np
import pytest
import torch

from tests.data.test_loader import SHARES
from txtrain.data.buckets import Buckets
from txtrain.data.interleave import PARTS, Alternating, Interleaved, Numbers, Together, Weighted, parts
from txtrain.data.joined import JoinedSamples, join
from txtrain.data.loader import StepLoader
from txtrain.data.order import Shuffled, permute, sample_generator

SIZES = [7, 20, 3]
WEIGHTS = [0.5, 0.3, 0.2]
SOME_WEIGHTS = [[0.7, 0.3], [1], [1, 2, 3], [0.05, 0.95], [0.123456, 7, 0.9, 0.3], [5, *[1] * 9], [1] * 7, [1e-9, 1]]


class Random:
    """Samples of two numbers: the first says which it is, the second is drawn for it and the epoch."""

    def __init__(self, size, name):
        self.size, self.name = size, name

    def __len__(self):
        return self.size

    def batch(self, index, epoch=0):
        rows = [[-1, 0] if i < 0 else [self.name * 100 + i, self.drawn(i, epoch)] for i in index.tolist()]
        targets = torch.tensor(rows).where(torch.from_numpy(index)[:, None] >= 0, -100)
        return {"targets": targets, "index": torch.from_numpy(index.copy())}

    def drawn(self, i, epoch):
        return int(sample_generator(self.name, epoch, i).integers(1_000_000))


def interleaved(sizes=SIZES, weights=WEIGHTS, batch_size=4):
    turns = Together(sizes, seed=5) if weights is None else Weighted(weights)
    return Interleaved(turns, Numbers(sizes), batch_size=batch_size, seeds=range(len(sizes)))


def seen(order, epochs):
    return np.concatenate(
        [order.samples(epoch, step).samples for epoch in range(epochs) for step in range(order.steps)]
    )


@pytest.mark.parametrize("weights", SOME_WEIGHTS, ids=str)
def test_after_any_number_of_turns_each_set_is_within_one_of_its_weight(weights):
    turns = Weighted(weights)
    shares = np.array(turns.parts) / turns.period
    assert np.abs(shares - np.array(weights) / sum(weights)).max() <= 2 / PARTS
    sets, before = turns.find(np.arange(2 * turns.period + 5))
    had = np.cumsum(np.eye(len(weights))[sets], axis=0)
    assert np.abs(had - np.arange(1, len(sets) + 1)[:, None] * shares).max() < 1
    for which in range(len(weights)):
        assert before[sets == which].tolist() == list(range(int(had[-1, which])))
    anywhere = np.random.default_rng(0).permutation(len(sets))[:50]
    assert all(
        np.array_equal(part[anywhere], found) for part, found in zip((sets, before), turns.find(anywhere), strict=True)
    )


def test_weights_that_people_type_are_exact():
    assert [parts(weights) for weights in ([0.7, 0.3], [1, 2], [0.1, 0.2, 0.7], [3.5, 3.5])] == [
        [7, 3],
        [1, 2],
        [1, 2, 7],
        [1, 1],
    ]
    assert parts([1e-9, 1])[0] == 1  # none is left out


def test_at_any_step_the_shares_of_samples_are_within_one_of_the_weights():
    order, counts = interleaved(), np.zeros(3)
    for total, number in enumerate(seen(order, 7), start=1):
        counts[order.numbers.split(number)[0]] += 1
        assert np.abs(counts - total * np.array(WEIGHTS)).max() < 1


@pytest.mark.parametrize("weights", [WEIGHTS, None, [1, 0.01, 2]], ids=str)
def test_no_sample_comes_twice_before_all_of_its_set_came_once(weights):
    order = interleaved(weights=weights)
    sets, passes, own = order.numbers.split(seen(order, 9))
    for which, size in enumerate(SIZES):
        mine, number = own[sets == which], passes[sets == which]
        assert number.tolist() == [place // size for place in range(len(mine))] or weights is None
        rounds = defaultdict(list)
        for sample, of in zip(mine.tolist(), number.tolist(), strict=True):
            rounds[of].append(sample)
        *whole, last = (rounds[of] for of in sorted(rounds))
        assert all(sorted(found) == list(range(size)) for found in whole)
        assert len(set(last)) == len(last)
        assert len(whole) < 2 or size < 4 or whole[0] != whole[1]


def test_without_weights_an_epoch_is_every_sample_once():
    order = interleaved(weights=None)
    for epoch in range(3):
        numbers = np.concatenate([order.samples(epoch, step).samples for step in range(order.steps)])
        assert sorted((numbers % 30).tolist()) == list(range(30))
        assert set(numbers // 30) == {epoch}


def test_a_mixture_of_one_set_is_that_set():
    order = interleaved(sizes=[19], weights=[0.3])
    alone = Shuffled(size=19, batch_size=4, seed=0)
    assert order.steps == alone.steps == 5
    for epoch in range(3):
        for step in range(5):
            found, expected = order.samples(epoch, step), alone.samples(epoch, step)
            assert (found.samples - 19 * epoch).tolist() == expected.samples.tolist()
            assert found[:2] == expected[:2]


@pytest.mark.parametrize("ranks, micro, accumulation", SHARES)
def test_ranks_see_together_what_one_process_sees(ranks, micro, accumulation):
    """Their union is the order's step, also of who goes on in the middle with other ranks."""
    samples = JoinedSamples({str(name): Random(size, name) for name, size in enumerate(SIZES)})
    order = interleaved(batch_size=16)
    for epoch, start in ((0, 0), (3, 1)):
        batches = []
        for rank in range(ranks):
            loader = StepLoader(samples, order=order, micro=micro, accumulation=accumulation, rank=rank, ranks=ranks)
            loader.load_state_dict({"epoch": epoch, "step": start})
            batches.append(list(loader))
        for step in range(start, order.steps):
            mine = slice((step - start) * accumulation, (step - start + 1) * accumulation)
            rows = [batch for of_rank in batches for batch in of_rank[mine]]
            numbers, targets = (torch.cat([batch[name] for batch in rows]) for name in ("index", "targets"))
            expected = order.samples(epoch, step).samples
            assert numbers[numbers >= 0].tolist() == expected.tolist()
            sets, passes, own = samples.numbers.split(expected)
            values = [
                [s * 100 + i, Random(0, s).drawn(i, p)]
                for s, p, i in zip(sets.tolist(), passes.tolist(), own.tolist(), strict=True)
            ]
            assert targets[numbers >= 0].tolist() == values
            assert (targets[numbers < 0] == -100).all()


def test_steps_of_so_many_tokens_are_of_one_set_each():
    """Weights are shares of steps; each set has all its samples in each of its passes."""
    lengths = [np.random.default_rng(seed).integers(1, 60, size) for seed, size in enumerate(SIZES)]
    orders = [Buckets(length, batch_tokens=100, seed=seed) for seed, length in enumerate(lengths)]
    order = Alternating(Weighted(WEIGHTS), Numbers(SIZES), orders=orders)
    assert order.steps == sum(each.steps for each in orders)
    counts, rounds = np.zeros(3), defaultdict(list)
    for total in range(1, 4 * order.steps + 1):
        sets, passes, own = order.numbers.split(order.samples(*divmod(total - 1, order.steps)).samples)
        assert len(set(sets.tolist())) == len(set(passes.tolist())) == 1
        which = int(sets[0])
        counts[which] += 1
        assert np.abs(counts - total * np.array(WEIGHTS)).max() < 1
        assert len(own) == 1 or len(own) * orders[which].bounds[orders[which].bucket[own]].max() <= 100
        rounds[which, int(passes[0])] += own.tolist()
    for (which, number), found in rounds.items():
        if (which, number + 1) in rounds:
            assert sorted(found) == list(range(SIZES[which]))


def test_rows_of_other_shapes_are_filled_up():
    short = {"tokens": torch.ones(1, 2), "targets": torch.tensor([3])}
    long = {"tokens": torch.ones(2, 4), "targets": torch.tensor([4, 5]), "types": torch.ones(2, 4)}
    rows = [np.array([1]), np.array([0, 2])]
    batch = join(rows, [short, long], [{"tokens": 9, "types": 0}, {"tokens": 9}])
    assert batch["tokens"].tolist() == [[1] * 4, [1, 1, 9, 9], [1] * 4]
    assert batch["types"].tolist() == [[1] * 4, [0] * 4, [1] * 4]
    assert batch["targets"].tolist() == [4, 3, 5]
    with pytest.raises(ValueError, match="types is none in one of them and 4 in the other"):
        join(rows, [short, long], [{"tokens": 9}, {"tokens": 9}])
    with pytest.raises(ValueError, match="tokens is 2 in one of them and 4 in the other"):
        join(rows, [short, {"tokens": torch.ones(2, 4)}], [{"targets": 0}, {}])


def test_each_set_has_an_order_of_its_own():
    order = interleaved(sizes=[30, 30], weights=[1, 1])
    sets, _, own = order.numbers.split(seen(order, 1))
    assert own[sets == 0].tolist() == permute(np.arange(30), size=30, seed=0, epoch=0).tolist()
    assert own[sets == 1].tolist() == permute(np.arange(30), size=30, seed=1, epoch=0).tolist()
