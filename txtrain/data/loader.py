"""Loaders: which rank sees which samples in which micro-batch, and how a run goes on in the middle of an epoch.

Both are plain iterables, not `torch.utils.data.DataLoader`s, so Lightning puts no sampler of its own into them; a
DataLoader inside brings worker processes and pinned memory.
"""

import atexit
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from txtrain.data.order import Order
from txtrain.data.packing import IGNORED, PADDING
from txtrain.signals import outlive

Batch = dict[str, Tensor]

WEIGHT_UNITS = 2**32
"""`step_weight` counts these parts of 1, as an integer, which no precision of the engine rounds."""

# Iterators whose workers may still be there, and the process that started these.
_open: WeakKeyDictionary[Iterator[list[Batch]], int] = WeakKeyDictionary()


@atexit.register
def end_workers() -> None:
    """Ends at once the workers of a process that ends, by an error too: they put off the SIGTERM that they get."""
    for prepared, process in _open.items():
        workers = getattr(prepared, "_workers", ()) if process == os.getpid() else ()
        if workers:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler raises when a worker is killed
        for worker in workers:
            worker.kill()
            worker.join()


class Samples(Protocol):
    """What a loader asks of a data set."""

    def __len__(self) -> int: ...

    def batch(self, index: NDArray[np.int64], epoch: int = 0) -> Batch:
        """The samples with these indices, an empty row with no valid target for `PADDING`.

        What is random in a sample follows from its index and the epoch alone; evaluation is epoch 0. `num_tokens` (B,)
        says how much of each the model reads, in tokens or frames without padding, where that is not as many as its
        targets.

        A set whose samples may differ in shape from those of another also has a mapping `filled`: what stands in a
        tensor, by its name, where it has nothing and another one has.
        """


def units_read(batch: Batch) -> Tensor:
    """How much of each sample (B,) the model reads: as much as it has targets, unless the batch says otherwise."""
    if "num_tokens" in batch:
        return batch["num_tokens"]
    valid = batch["targets"] != IGNORED
    return valid.flatten(1).sum(1) if valid.dim() > 1 else valid


def target_weight(batch: Batch, weights: Tensor) -> Tensor:
    """Sum of the weights of all valid targets, by their label; of a mixture, of both labels by their shares."""
    weighed = weights.new_zeros(())
    shares = batch.get("shares")
    for name, share in (("targets", shares), ("others", None if shares is None else 1 - shares)):
        if name in batch:
            valid = batch[name] != IGNORED
            found = weights[batch[name].where(valid, 0)] * valid
            weighed = weighed + (found if share is None else found * share.to(weights.dtype)).sum()
    return weighed


class StepLoader:
    """Micro-batches of training, whole optimizer steps at a time.

    Each rank takes an equal contiguous share of a step's samples, filled up with empty rows to `accumulation`
    micro-batches of `micro` rows, so that every step has one shape, the last of an epoch too. Each micro-batch carries
    `step_tokens`, the valid targets of this rank in this step, and `step_read`, all tokens of it that are no padding.

    Args:
        samples: the training set.
        order: which of them each optimizer step sees.
        micro: rows of a micro-batch. Default: as few as each step needs, where steps differ in their samples.
        accumulation: micro-batches per optimizer step on each rank.
        rank: this process.
        ranks: number of processes.
        num_workers: processes that prepare steps in advance; 0 does it here.
        pin_memory: place batches where a GPU copies faster from.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        order: Order,
        micro: int | None,
        accumulation: int,
        rank: int = 0,
        ranks: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        self.samples, self.order, self.micro, self.accumulation = samples, order, micro, accumulation
        self.rank, self.ranks = rank, ranks
        self.num_workers, self.pin_memory = num_workers, pin_memory
        self.steps = order.steps
        self.weights: Tensor | None = None  # of labels: `step_weight` then has the sum of those of the step's targets
        self.on_resume: Callable[[int], None] | None = None  # told the micro-batch at which a restored epoch goes on
        self._epoch = 0
        self._start = 0  # step at which the next iterator begins
        self._step = 0  # steps handed out in this epoch, which are those trained: the DataLoader's lead is not counted

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[Batch]:
        # A generator: Lightning makes the first iterator before it calls `set_epoch` and reads its first batch after.
        first, self._start = self._start, 0
        self._step = first
        order = range(first, self.steps)
        for step, batches in zip(order, self._prepared(order), strict=True):
            for number, batch in enumerate(batches, start=1):
                self._step = step + (number == self.accumulation)
                yield batch

    def _prepared(self, order: range) -> Iterable[list[Batch]]:
        steps = _Steps(self, self._epoch)
        if not (self.num_workers or self.pin_memory):
            return map(steps.__getitem__, order)
        loader = DataLoader(
            steps,
            sampler=order,
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            worker_init_fn=outlive,
            generator=torch.Generator(),  # its own: an iterator otherwise draws its seed from the global generator
        )
        prepared = iter(loader)
        _open[prepared] = os.getpid()
        return prepared

    @property
    def sampler(self) -> "StepLoader":
        """Lightning calls `set_epoch` on a loader's `sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        if epoch != self._epoch:
            self._epoch, self._start, self._step = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._epoch, self._start = state_dict["epoch"], state_dict["step"]
        self._step = self._start
        if self.on_resume is not None:
            self.on_resume(self._start * self.accumulation)

    def rows(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Sample indices of this rank's part of a step, (accumulation, micro), `PADDING` where empty."""
        found = self.order.samples(epoch, step).samples
        mine = found[self.rank * len(found) // self.ranks : (self.rank + 1) * len(found) // self.ranks]
        micro = self.micro or -(-len(found) // (self.ranks * self.accumulation))
        assert len(mine) <= self.accumulation * micro, "a step's samples do not fit into its micro-batches"
        rows = np.full(self.accumulation * micro, PADDING, dtype=np.int64)
        rows[: len(mine)] = mine
        return rows.reshape(self.accumulation, micro)


class _Steps(Dataset[list[Batch]]):
    """This rank's micro-batches of each step of an epoch."""

    def __init__(self, loader: StepLoader, epoch: int) -> None:
        self.rows = loader.rows
        self.samples = loader.samples
        self.weights = loader.weights
        self.epoch = epoch

    def __getitem__(self, step: int) -> list[Batch]:
        batches = [self.samples.batch(rows, self.epoch) for rows in self.rows(self.epoch, step)]
        targets = [(batch["targets"] != IGNORED).sum() for batch in batches]
        read = [units_read(batch).sum() for batch in batches]
        for batch in batches:
            batch.pop("num_tokens", None)
        sums = {"step_tokens": torch.stack(targets).sum(), "step_read": torch.stack(read).sum()}
        if self.weights is not None:
            weighed = [target_weight(batch, self.weights) for batch in batches]
            sums["step_weight"] = (torch.stack(weighed).sum() * WEIGHT_UNITS).round().to(torch.int64)
        return [batch | sums for batch in batches]


class EvaluationLoader:
    """Micro-batches of evaluation: each sample exactly once over all ranks, as many batches on each.

    The order is that of epoch 0, so that the first batches (`trainer.limit_val_batches`) are a fair sample.

    Args:
        samples: the validation set.
        order: which of them each batch sees, of as many micro-batches on all ranks as it needs, so that the first
            batches are the same on any number of ranks.
        rest: as in `StepLoader`.
    """

    def __init__(self, samples: Samples, *, order: Order, **rest: Any) -> None:
        self._loader = StepLoader(samples, order=order, **rest)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)
