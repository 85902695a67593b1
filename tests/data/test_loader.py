"""Loaders: who sees what, on any number of ranks, with any micro-batch, with workers, and after a resume."""

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from txtrain.data.loader import EvaluationLoader, StepLoader
from txtrain.data.order import Shuffled, permute

# Python 3.12 and later warn of any fork beside threads; the workers only read a file.
workers_fork = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


class Ragged:
    """Samples whose number of valid targets is their index modulo 4, plus 1."""

    width = 4

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def batch(self, index, epoch=0):
        valid = (np.arange(self.width) <= index[:, None] % 4) & (index[:, None] >= 0)
        targets = np.where(valid, index[:, None], -100)
        return {"index": torch.from_numpy(index.copy()), "targets": torch.from_numpy(targets)}


SHARES = [(1, 16, 1), (1, 4, 4), (1, 5, 4), (2, 8, 1), (2, 3, 3), (3, 6, 1), (3, 2, 3), (5, 1, 4)]


def loaders(size, ranks, micro, accumulation, **options):
    options = {"order": Shuffled(size=size, batch_size=16, seed=3)} | options
    return [
        StepLoader(Ragged(size), micro=micro, accumulation=accumulation, rank=rank, ranks=ranks, **options)
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("size", [1, 5, 16, 17, 50])
@pytest.mark.parametrize("ranks, micro, accumulation", SHARES)
def test_each_step_takes_its_part_of_the_permutation(size, ranks, micro, accumulation):
    group = loaders(size, ranks, micro, accumulation)
    for loader in group:
        loader.set_epoch(2)
    seen = [list(loader) for loader in group]
    order = permute(np.arange(size), size=size, seed=3, epoch=2)
    steps = -(-size // 16)
    assert [len(batches) for batches in seen] == [len(loader) for loader in group] == [steps * accumulation] * ranks
    for step in range(steps):
        rows = [
            batch["index"] for batches in seen for batch in batches[step * accumulation : (step + 1) * accumulation]
        ]
        assert all(len(row) == micro for row in rows)
        index = torch.cat(rows)
        assert index[index >= 0].tolist() == order[step * 16 : (step + 1) * 16].tolist()


@pytest.mark.parametrize("ranks, micro, accumulation", SHARES)
def test_step_tokens_counts_this_ranks_targets_of_the_whole_step(ranks, micro, accumulation):
    for loader in loaders(37, ranks, micro, accumulation):
        batches = list(loader)
        for step in range(loader.steps):
            part = batches[step * accumulation : (step + 1) * accumulation]
            valid = sum(int((batch["targets"] != -100).sum()) for batch in part)
            assert [int(batch["step_tokens"]) for batch in part] == [valid] * accumulation
            assert part[0]["step_tokens"].shape == ()
            assert part[0]["step_tokens"].dtype == torch.int64


def test_epochs_differ_and_an_iterator_begins_again():
    (loader,) = loaders(50, 1, 16, 1)
    first = torch.cat([batch["index"] for batch in loader])
    assert torch.equal(first, torch.cat([batch["index"] for batch in loader]))
    loader.set_epoch(1)
    assert not torch.equal(first, torch.cat([batch["index"] for batch in loader]))
    next(iter(loader))
    assert len(list(loader)) == len(loader)


def test_the_epoch_is_read_with_the_first_batch():
    (loader,), (expected,) = loaders(50, 1, 16, 1), loaders(50, 1, 16, 1)
    iterator = iter(loader)
    loader.set_epoch(4)
    expected.set_epoch(4)
    assert torch.equal(next(iterator)["index"], next(iter(expected))["index"])


@workers_fork
@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_follows_what_was_handed_out(workers):
    (loader,) = loaders(100, 1, 8, 2, num_workers=workers)
    loader.set_epoch(5)
    whole = [batch["index"].tolist() for batch in loader]
    for taken in (1, 2, 3, 6):
        list(itertools.islice(loader, 0))
        iterator = iter(loader)
        for _ in range(taken):
            next(iterator)
        state = loader.state_dict()
        assert state == {"epoch": 5, "step": taken // 2}  # a step that is not whole is done again
        (other,) = loaders(100, 1, 4, 4, num_workers=workers)  # with another micro-batch
        told = []
        other.on_resume = told.append
        other.load_state_dict(state)
        assert told == [taken // 2 * 4]
        other.set_epoch(5)
        rest = [i for batch in other for i in batch["index"].tolist()]
        assert rest == [i for row in whole[taken // 2 * 2 :] for i in row]
        other.set_epoch(6)
        assert len(list(other)) == len(other)


def test_a_finished_epoch_does_not_shorten_the_next():
    (loader,) = loaders(50, 1, 16, 1)
    loader.load_state_dict({"epoch": 0, "step": 3})
    loader.set_epoch(1)
    assert loader.state_dict() == {"epoch": 1, "step": 0}
    assert len(list(loader)) == len(loader) == 4


@workers_fork
@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_draws_nothing_from_the_global_generator(workers):
    (loader,) = loaders(20, 1, 16, 1, num_workers=workers)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(before, torch.get_rng_state())


def evaluation(size, ranks, micro, batch_size):
    order, accumulation = Shuffled(size=size, batch_size=batch_size, seed=0), -(-batch_size // (micro * ranks))
    return [
        EvaluationLoader(Ragged(size), order=order, micro=micro, accumulation=accumulation, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("size", [1, 2, 7, 12, 13])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 4])
def test_evaluation_is_exact_on_any_number_of_ranks(size, ranks, micro):
    group = evaluation(size, ranks, micro, batch_size=micro * ranks)
    seen = [list(loader) for loader in group]
    assert len({len(batches) for batches in seen}) == 1
    assert len(seen[0]) == len(group[0])
    index = torch.cat([batch["index"] for batches in seen for batch in batches])
    assert sorted(index[index >= 0].tolist()) == list(range(size))
    empty = torch.cat([batch["targets"] for batches in seen for batch in batches])[index < 0]
    assert (empty == -100).all()
    assert torch.equal(seen[0][0]["index"], next(iter(group[0]))["index"])


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 8])
def test_the_first_batches_of_evaluation_are_the_same_samples_on_any_number_of_ranks(ranks, micro):
    """A batch is 7 samples however it is split into micro-batches."""
    steps = -(-7 // (micro * ranks))
    seen = [list(loader) for loader in evaluation(23, ranks, micro, batch_size=7)]
    assert {len(batches) for batches in seen} == {4 * steps}
    for batch in range(4):
        part = slice(batch * steps, (batch + 1) * steps)
        index = torch.cat([micro_batch["index"] for batches in seen for micro_batch in batches[part]])
        (whole,) = evaluation(23, 1, 7, batch_size=7)
        expected = list(whole)[batch]["index"]
        assert sorted(index[index >= 0].tolist()) == sorted(expected[expected >= 0].tolist())


def test_an_error_ends_the_process_and_its_workers_at_once():
    """Workers outlive the SIGTERM that a whole job gets, but not the process that needs them."""
    program = """
import os, sys
import numpy as np, torch
from txtrain.data.loader import StepLoader
from txtrain.data.order import Shuffled

class Slow:
    def __len__(self): return 8
    def batch(self, index, epoch=0):
        import time
        time.sleep(0 if 0 in index else 60)
        print(os.getpid(), flush=True)
        return {"targets": torch.zeros(len(index), 1)}

if __name__ == "__main__":
    order = Shuffled(size=8, batch_size=8, seed=0)
    loader = StepLoader(Slow(), order=order, micro=8, accumulation=1, num_workers=2)
    batches = iter(loader)
    next(batches)
    late = StepLoader(Slow(), order=Shuffled(size=8, batch_size=1, seed=0), micro=1, accumulation=1, num_workers=2)
    others = [iter(late._prepared(range(8)))]
    raise ValueError("the end")
"""
    started = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("ValueError: the end")
    assert time.monotonic() - started < 50, "a worker held it up"
