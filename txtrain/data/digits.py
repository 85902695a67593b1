"""Handwritten digits that scikit-learn carries: real images on every machine, with no network."""

import gzip
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from txtrain.data.images import Entry, ImageData
from txtrain.data.order import permute
from txtrain.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, WHITE = 8, 16  # pixels, and the largest of their values
FOLDS = 5


class Digits(ImageData):
    """1797 digits of 13 writers, 8 × 8 pixels of 17 shades (https://archive.ics.uci.edu/dataset/80).

    Args:
        fold: which fifth of each digit is for validation, from 0 to 4.
        base: as in `ImageData`.
    """

    def __init__(self, *, fold: int = 0, **base: Any) -> None:
        super().__init__(**base)
        if not 0 <= fold < FOLDS:
            raise UserError(f"data.fold is {fold}: give 0 to {FOLDS - 1}, such as data.fold=0")
        found = find_spec("sklearn")
        if found is None or not found.submodule_search_locations:
            raise UserError(
                "data=digits needs scikit-learn, which carries them: type pip install 'txtrain[tasks]', or "
                "data=image_folder data.path=FOLDER"
            )
        self.fold = fold
        # Read as the file that it is: importing the library takes a second.
        self.file = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"

    @cached_property
    def table(self) -> NDArray[np.uint8]:
        """A row for each digit: its pixels, and what it is."""
        try:
            with gzip.open(self.file, "rt") as file:
                return np.loadtxt(file, delimiter=",", dtype=np.uint8)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.file} cannot be read ({error}): install scikit-learn again") from error

    def identity(self) -> Any:
        return ["digits", self.file.stat().st_size, self.fold]

    def entries(self) -> list[Entry]:
        # The n-th of each digit, in an order of its own, is in fold n modulo the folds.
        size = len(self.table)
        order, seen, folds = permute(np.arange(size), size=size, seed=0, epoch=0), [0] * 10, [0] * size
        for number in order.tolist():
            digit = int(self.table[number, -1])
            folds[number] = seen[digit] % FOLDS
            seen[digit] += 1
        return [
            Entry(place=f"digit {number}", label=str(row[-1]), group=str(number), held_out=folds[number] == self.fold)
            for number, row in enumerate(self.table)
        ]

    def image(self, entry: Entry) -> "Image":
        from PIL.Image import fromarray

        pixels = self.table[int(entry.group), :-1].reshape(SIDE, SIDE)
        return fromarray((pixels.astype(np.uint16) * 255 // WHITE).astype(np.uint8))

    def _named(self) -> str:
        return "data=digits"
