"""What a task trains on: samples, shared out among devices, and what must be known of them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor

from txtrain.data.balanced import Balanced
from txtrain.data.loader import EvaluationLoader, Samples, StepLoader, units_read
from txtrain.data.order import Order, Shuffled, samples_of_step
from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a sample comes from and what it is.

    Attributes:
        token: where in the file of tokens it begins.
        places: files, or files and lines.
        text: how it begins; where it has several parts, each of them.
    """

    token: int | None = None
    places: Sequence[str] = ()
    text: str | None = None


class Data(LightningDataModule):
    """Samples of a task; a subclass says what they are and where they come from.

    Args:
        tokenizer: turns text into tokens, where there is text.
        seed: of the order of training samples, and of all that is random in them.
        batch_size: samples per optimizer step, over all devices.
        micro_batch_size: most samples per device and forward pass. Default: as many as that gives.
        sampling: `balanced` draws each label equally often; None: each sample once in an epoch.
        num_workers: processes that prepare batches in advance.
        cache_dir: where what `prepare` makes is kept.
    """

    content: str  # of a sample, in a word: a task says what it reads by the same word
    labels: Sequence[str] = ()  # names of what samples are labelled with, once they are prepared
    class_weights: Tensor | None = None  # of labels, by which targets of training count
    alike: ClassVar[tuple[str, ...]] = ()  # keys of which sets of a mixture have the same values

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        seed: int = 0,
        batch_size: int = 16,
        micro_batch_size: int | None = None,
        sampling: Literal["balanced"] | None = None,
        num_workers: int = 0,
        cache_dir: str = "~/.cache/txtrain",
    ) -> None:
        super().__init__()
        check_least({"batch_size": batch_size, "micro_batch_size": micro_batch_size}, least=1)
        check_least({"num_workers": num_workers}, least=0)
        self.tokenizer = tokenizer
        self.seed = seed
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.sampling = sampling
        self.num_workers = num_workers
        self.cache_dir = Path(cache_dir).expanduser().absolute()

    # What a subclass says

    @abstractmethod
    def prepare(self) -> None:
        """Make or find the samples, and refuse those that could not be trained on.

        Any number of processes may call it at once.
        """

    @abstractmethod
    def samples(self, split: Literal["train", "validation"]) -> Samples:
        """Those of a split, once they are prepared."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Another name for other samples."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """What a model for these samples is made from, as keyword arguments; 1 for what only `prepare` can know."""

    @abstractmethod
    def description(self) -> str:
        """How much there is of what, told before training."""

    @abstractmethod
    def unit(self) -> str:
        """What a batch counts, such as `sequences of 256`."""

    def left_out(self) -> dict[str, str]:
        """What of the source is no sample, or had to be changed, by name: told before training and evaluation."""
        return {}

    def details(self) -> dict[str, str]:
        """What else is to be told before training, by name."""
        return self.left_out()

    @property
    def parts(self) -> "Mapping[str, Data]":
        """The data sets that it is made of, by name, each of which is validated by itself."""
        return {"": self}

    @property
    def first_part(self) -> "Data":
        """The first of them, or the only one."""
        return next(iter(self.parts.values()))

    def planned(self, steps: float) -> dict[str, str]:
        """What a run of so many steps sees of each data set, by name, where there are several."""
        return {}

    @property
    def tokenized(self) -> bool:
        """Whether there is text for the tokenizer."""
        return True

    @property
    def documents_apart(self) -> bool:
        """Whether a sample holds documents that do not see each other."""
        return False

    @property
    def padded(self) -> bool:
        """Whether samples differ in length, so that batches are filled up."""
        return False

    def save(self, run_dir: Path) -> None:
        """Writes down what the trained model will need of the data, such as its tokenizer or the names of classes."""

    @classmethod
    def reader(cls, run_dir: Path, tokenizer: Tokenizer) -> Any:
        """What makes a trained model's input as it was in training, from what `save` wrote: here the tokenizer."""
        path = run_dir / "tokenizer.json"
        try:
            tokenizer.load(path)
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"{path} cannot be read ({error}): restore it or name another run") from error
        return tokenizer

    def label_counts(self) -> list[int]:
        """How often each label is a target of training, once samples are prepared."""
        raise UserError("loss.class_weights=balanced counts labels, and these data have none to count: give a list")

    def label_numbers(self) -> NDArray[np.int64]:
        """(N,) the label of each sample of training, by its number, once samples are prepared."""
        raise UserError(
            "data.sampling=balanced draws each label equally often, and a sample of these data has no label of its "
            "own: leave it out, or choose data=labelled"
        )

    def adopt(self, labels: Sequence[str]) -> None:
        """Have the labels of a trained model, to evaluate it on these samples. Before `prepare`."""

    def recall(self, run_dir: Path) -> None:
        """Make input as a trained model needs it, with what `save` wrote beside the tokenizer. Before `prepare`."""

    def hold_out_all(self) -> None:
        """Leave nothing to train on: all is for evaluation. Before `prepare`."""
        raise UserError(f"{type(self).__name__} cannot be evaluated as a whole: leave out the overrides of data")

    def prepare_evaluation(self) -> None:
        """Make or find the samples, and refuse those that nothing could be evaluated on."""
        self.prepare()

    def check_saved(self, run_dir: Path) -> None:
        """For a run that goes on with other samples than it began with.

        Raises:
            UserError: what `save` wrote means something else now.
        """

    def locate(self, index: int) -> tuple[str | None, int]:
        """The data set of a training sample, if there are several, and its number in that."""
        return None, index

    def origin(self, index: int) -> Origin:
        """Of a training sample, for who wants to look at it."""
        return Origin()

    def open(self, folder: Path) -> None:
        """Work with a folder that `prepare` has made in `cache_dir`, be it of other data."""
        raise NotImplementedError(f"{type(self).__name__} keeps nothing in {folder}")

    # Loaders

    def order(self, samples: Sized, *, seed: int) -> Order:
        """Which samples each optimizer step of an epoch sees, and in evaluation each batch."""
        return Shuffled(size=len(samples), batch_size=self.batch_size, seed=seed)

    def train_order(self, samples: Sized) -> Order:
        """Which training samples each optimizer step of an epoch sees."""
        if self.sampling == "balanced":
            if isinstance(samples, range):
                raise UserError("which samples a step saw follows from their labels, and they are gone: put them back")
            return Balanced(self.label_numbers(), batch_size=self.batch_size, seed=self.seed)
        return self.order(samples, seed=self.seed)

    @property
    def steps_in_epoch(self) -> int:
        """Optimizer steps in a pass over the training samples, on any number of devices."""
        return self.train_order(self.samples("train")).steps

    def units_read(self, steps: int) -> int:
        """How much the model reads in the first steps of a run, computed from the samples."""
        samples = self.samples("train")
        order, varies = self.train_order(samples), getattr(samples, "augment", None) is not None
        known, total = np.full(len(samples), -1, dtype=np.int64), 0
        for step in range(1, steps + 1):
            epoch, _, index = samples_of_step(order, step)
            unknown = index if varies else index[known[index] < 0]
            if len(unknown):
                known[unknown] = units_read(samples.batch(unknown, epoch)).numpy()
            total += int(known[index].sum())
        return total

    def batch_told(self, devices: int) -> str:
        """What a step sees, in words."""
        return f"{self.batch_size} {self.unit()} a step: micro-batches of {self.micro(devices)}"

    def micro(self, devices: int) -> int | None:
        """Samples per device and forward pass; None if that differs from step to step."""
        return self._micro(devices)

    def accumulation(self, devices: int) -> int:
        """Forward passes per device and optimizer step."""
        return -(-self.batch_size // (self._micro(devices) * devices))

    def _micro(self, devices: int) -> int:
        share = -(-self.batch_size // devices)
        return min(self.micro_batch_size or share, share)

    def train_dataloader(self) -> StepLoader:
        samples = self.samples("train")
        loader = StepLoader(samples, order=self.train_order(samples), **self._placement())
        loader.on_resume, loader.weights = self._align, self.class_weights
        return loader

    def val_dataloader(self) -> EvaluationLoader:
        samples = self.samples("validation")
        return EvaluationLoader(samples, order=self.order(samples, seed=0), **self._placement())

    def _placement(self) -> dict[str, Any]:
        trainer = self._trainer()
        return {
            "micro": self.micro(trainer.world_size),
            "accumulation": self.accumulation(trainer.world_size),
            "rank": trainer.global_rank,
            "ranks": trainer.world_size,
            "num_workers": self.num_workers,
            "pin_memory": trainer.strategy.root_device.type == "cuda",
        }

    def _trainer(self) -> Any:
        assert self.trainer is not None, "loaders are made for a trainer: their shares depend on its devices"
        return self.trainer

    def _align(self, batch: int) -> None:
        """On resume, make Lightning's counts of micro-batches, of this epoch and of all, those of this accumulation.

        They differ where the devices or the micro-batch have changed since, or where the run was saved within a step.
        """
        trainer = self._trainer()
        progress = trainer.fit_loop.epoch_loop.batch_progress
        total = trainer.global_step * trainer.accumulate_grad_batches
        for counts, processed in ((progress.current, batch), (progress.total, total)):
            shift = processed - counts.processed
            for name in ("ready", "started", "processed", "completed"):
                setattr(counts, name, getattr(counts, name) + shift)


def check_least(options: Mapping[str, int | None], *, least: int) -> None:
    """Refuses numbers of the `data` group that are less than they can be; None is a default."""
    for name, number in options.items():
        if number is not None and number < least:
            raise UserError(f"data.{name}={number} is too small: set data.{name}={least} or more")
