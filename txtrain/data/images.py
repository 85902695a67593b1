"""Images with a label each: where they come from is up to subclasses."""

from abc import abstractmethod
from collections.abc import Container, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtrain.data import cache
from txtrain.data.augment import Augment
from txtrain.data.base import Data, Origin
from txtrain.data.labels import (
    balance,
    check_classes,
    check_known,
    find_labels,
    read_labels,
    split_by_group,
    write_labels,
)
from txtrain.data.mixing import Mixing
from txtrain.data.order import permute, sample_generator
from txtrain.data.packing import IGNORED, PADDING
from txtrain.data.pixels import RESAMPLING, Pixels
from txtrain.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

MIXTURES = 1  # what random numbers are for beside the changes of an image
PARTNERS = 1  # added to the seed for another permutation than the order of samples


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An image that is not read yet.

    Args:
        place: where it is, in words.
        label: the name of its class.
        group: a name that it keeps wherever it lies; images of one group are on one side of the split.
        held_out: whether it is for validation; None leaves that to the split.
    """

    place: str
    label: str
    group: str
    held_out: bool | None = None


class ImageData(Data):
    """Images of one size, each with one label.

    Args:
        image_size: height and width to which all are resized, or one number for both.
        channels: 1 grey, 3 red, green and blue, 4 with transparency.
        mean, std: of each channel, or one for all, of values from 0 to 1.
        resize: the shorter side, or height and width, to which images are resized before the middle of `image_size` is
            cut out, where they are not changed at random. Default: `image_size`, so that nothing is cut off.
        resample: how images are resized.
        augment: random changes in training.
        mixing: mixtures of two images in training.
        validation_fraction: of each class that is held out.
        base: as in `Data`.
    """

    content = "labelled images"
    alike = ("image_size", "channels", "mean", "std", "resize", "resample")

    def __init__(
        self,
        *,
        image_size: int | list[int],
        channels: int = 3,
        mean: float | list[float] = 0.5,
        std: float | list[float] = 0.5,
        resize: int | list[int] | None = None,
        resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bilinear",
        augment: Augment | None = None,
        mixing: Mixing | None = None,
        validation_fraction: float = 0.1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        size = [image_size, image_size] if isinstance(image_size, int) else image_size
        if len(size) != 2 or min(size) < 1:
            raise UserError(
                f"data.image_size is {image_size}: give one number, or height and width, such as data.image_size=224"
            )
        if not 0 < validation_fraction < 1:
            raise UserError(
                f"data.validation_fraction={validation_fraction} is not between 0 and 1: "
                "set data.validation_fraction=0.1"
            )
        self.pixels = Pixels(
            size=(size[0], size[1]),
            channels=channels,
            mean=numbers(mean),
            std=numbers(std),
            resize=(resize[0], resize[-1]) if isinstance(resize, list) else resize,
            resample=RESAMPLING[resample],
        )
        self.augment, self.mixing = augment or Augment(), mixing or Mixing()
        if self.augment.operations and channels not in (1, 3):
            raise UserError(
                f"data.augment.operations={self.augment.operations} are for images of 1 or 3 channels, got "
                f"data.channels={channels}: set data.augment.operations=0"
            )
        self.validation_fraction = validation_fraction
        self.labels: Sequence[str] = ()
        self._adopted: Sequence[str] | None = None

    @abstractmethod
    def identity(self) -> Any:
        """What tells these images from any others, cheaply and as plain JSON."""

    @abstractmethod
    def entries(self) -> list[Entry]:
        """All images that can be read, in the same order whenever it is called."""

    @abstractmethod
    def image(self, entry: Entry) -> "Image":
        """An image, read."""

    def _named(self) -> str:
        """The source in the words of the command line."""
        return "the data"

    def prepare(self) -> None:
        self.prepare_evaluation()
        counts = self.counts("train"), self.counts("validation")
        check_classes(*counts, self.labels, self._named(), own=not self._adopted)

    def prepare_evaluation(self) -> None:
        entries = self.entries()
        names = [entry.label for entry in entries]
        self.labels = list(self._adopted or find_labels(names, self._named()))
        check_known(((entry.label, entry.place) for entry in entries), self.labels)
        apart = any(entry.held_out is not None for entry in entries)
        if apart and self.validation_fraction < 1:
            held_out = np.array([bool(entry.held_out) for entry in entries], dtype=bool)
        else:
            held_out = split_by_group([entry.group for entry in entries], names, self.validation_fraction)
        self._splits = {
            "train": [entry for entry, out in zip(entries, held_out, strict=True) if not out],
            "validation": [entry for entry, out in zip(entries, held_out, strict=True) if out],
        }

    def samples(self, split: Literal["train", "validation"]) -> "ImageSamples":
        return ImageSamples(self, self._splits[split], train=split == "train")

    def label_counts(self) -> list[int]:
        return self.counts("train")

    def label_numbers(self) -> NDArray[np.int64]:
        return self._numbers("train")

    def counts(self, split: str) -> list[int]:
        """Images of each class."""
        return np.bincount(self._numbers(split), minlength=len(self.labels)).tolist()

    def _numbers(self, split: str) -> NDArray[np.int64]:
        numbers = {label: number for number, label in enumerate(self.labels)}
        return np.array([numbers[entry.label] for entry in self._splits[split]], dtype=np.int64)

    def fingerprint(self) -> str:
        return cache.fingerprint(source=self.identity(), validation_fraction=self.validation_fraction)

    def sizes(self) -> dict[str, int]:
        return {"num_labels": len(self.labels) or 1}

    def description(self) -> str:
        (height, width), counts = self.pixels.size, [len(self._splits[split]) for split in ("train", "validation")]
        return f"{counts[0]} images to train on, {counts[1]} to validate; {height} × {width} × {self.pixels.channels}"

    def details(self) -> dict[str, str]:
        return {
            "labels": balance(self.counts("train"), self.labels),
            "validation": balance(self.counts("validation"), self.labels),
        } | self.left_out()

    @property
    def tokenized(self) -> bool:
        return False

    def unit(self) -> str:
        return "images"

    def save(self, run_dir: Path) -> None:
        write_labels(run_dir, self.labels)
        self.pixels.save(run_dir)

    @classmethod
    def reader(cls, run_dir: Path, tokenizer: Any) -> Pixels:
        """How an image becomes the model's input."""
        return Pixels.read(run_dir)

    def adopt(self, labels: Sequence[str]) -> None:
        self._adopted = labels

    def hold_out_all(self) -> None:
        self.validation_fraction = 1.0

    def check_saved(self, run_dir: Path) -> None:
        if read_labels(run_dir) != self.labels:
            raise UserError(
                f"resume={run_dir}: the data have changed since the run began and have other labels: put them back, "
                "or start a new run"
            )

    def origin(self, index: int) -> Origin:
        entry = self._splits["train"][index]
        return Origin(places=[entry.place], text=entry.label)


class ImageSamples:
    """Images of a split as batches: `images` (B, C, height, width), `targets` and `index` (B,).

    With mixtures also `others` (B,), the labels of the second images, and `shares` (B,), those of the first ones.

    Args:
        data: whose images they are.
        entries: of the split.
        train: whether they are changed and mixed.
    """

    def __init__(self, data: ImageData, entries: list[Entry], *, train: bool) -> None:
        self.data, self.entries = data, entries
        self.pixels, self.augment, self.seed = data.pixels, data.augment if train else None, data.seed
        self.mixing = data.mixing if train and data.mixing else None
        numbers = {label: number for number, label in enumerate(data.labels)}
        self.targets = np.array([numbers[entry.label] for entry in entries], dtype=np.int64)
        self.filled = {"others": IGNORED, "shares": 1.0}

    def __len__(self) -> int:
        return len(self.entries)

    def batch(self, index: NDArray[np.int64], epoch: int = 0) -> dict[str, Tensor]:
        """The images with these indices, an empty one for `PADDING`."""
        targets = torch.from_numpy(np.where(index == PADDING, IGNORED, self.targets[index]))
        batch = {"targets": targets, "index": torch.from_numpy(index.astype(np.int64))}
        if self.mixing is None:
            return batch | {"images": torch.stack([self._read(i, epoch) for i in index.tolist()])}
        partners = self._partners(index, epoch)
        mixed = [self._mixed(i, j, epoch) for i, j in zip(index.tolist(), partners.tolist(), strict=True)]
        others = torch.from_numpy(np.where(index == PADDING, IGNORED, self.targets[partners]))
        shares = torch.tensor([share for _, share in mixed])
        return batch | {"images": torch.stack([image for image, _ in mixed]), "others": others, "shares": shares}

    def _read(self, index: int, epoch: int) -> Tensor:
        if index == PADDING:
            return torch.zeros(self.pixels.channels, *self.pixels.size)
        image = self.data.image(self.entries[index])
        if self.augment is None:
            return self.pixels(image)
        return self.augment(image, self.pixels, sample_generator(self.seed, epoch, index))

    def _partners(self, index: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        """With which image each is mixed: every one is the partner of one in an epoch."""
        real = np.where(index == PADDING, 0, index)
        return permute(real, size=len(self), seed=self.seed + PARTNERS, epoch=epoch)

    def _mixed(self, index: int, partner: int, epoch: int) -> tuple[Tensor, float]:
        if index == PADDING or self.mixing is None:
            return self._read(PADDING, epoch), 1.0
        mixture = self.mixing.draw(self.pixels.size, sample_generator(self.seed, epoch, index, MIXTURES))
        return mixture(self._read(index, epoch), self._read(partner, epoch)), mixture.share


def see_as(node: MutableMapping[str, Any], pixels: Pixels, typed: Container[str]) -> None:
    """Has data read images as a trained model saw them, but for what the user typed.

    Args:
        node: the config of the data; those of no images stay as they are.
        pixels: the model's.
        typed: keys, such as `data.mean`.
    """
    for name, value in pixels.settings().items():
        if name in node and f"data.{name}" not in typed:
            node[name] = value


def numbers(value: float | list[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list) else (float(value),)
