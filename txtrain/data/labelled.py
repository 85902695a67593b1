"""What classifiers of text train on: examples with labels, encoded once and kept."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from txtrain.data import cache
from txtrain.data.base import Data, check_least
from txtrain.data.labels import find_labels, read_labels, write_labels
from txtrain.data.seal import Damaged
from txtrain.errors import UserError


class LabelledData(Data):
    """Samples `<cls> text <sep>` with labels; a subclass says what is labelled, and where it comes from.

    Args:
        seq_len: most tokens of a sample.
        validation_fraction: of the examples of each label to hold out.
        base: as in `Data`.
    """

    alike = ("seq_len",)

    def __init__(self, *, seq_len: int = 128, validation_fraction: float = 0.1, **base: Any) -> None:
        super().__init__(**base)
        check_least({"seq_len": seq_len}, least=8)
        if not 0 < validation_fraction < 1:
            raise UserError(
                f"data.validation_fraction={validation_fraction} is not between 0 and 1: "
                "set data.validation_fraction=0.1"
            )
        self.seq_len, self.validation_fraction = seq_len, validation_fraction
        self.labels: Sequence[str] = []
        self._known: Sequence[str] | None = None  # labels of a trained model
        self.tokenizer.need("class", "separator")

    @abstractmethod
    def identity(self) -> Any:
        """What tells these examples from any others, cheaply and as plain JSON."""

    @abstractmethod
    def _write(self, folder: Path) -> None:
        """Fills an entry of the cache: labels, tokenizer, and encoded examples."""

    def fingerprint(self) -> str:
        return cache.fingerprint(
            source=self.identity(),
            kind=self.content,
            tokenizer=self.tokenizer.fingerprint(),
            validation_fraction=self.validation_fraction,
            labels=self._known,
            **self._encoding(),
        )

    def _encoding(self) -> dict[str, Any]:
        """What else the encoded examples depend on."""
        return {}

    def adopt(self, labels: Sequence[str]) -> None:
        self._known = list(labels)

    @property
    def padded(self) -> bool:
        return True

    def hold_out_all(self) -> None:
        self.validation_fraction = 1.0

    def find_labels(self, labels: Iterable[str]) -> Sequence[str]:
        """The names of the classes: those of the trained model, or those that occur."""
        return self._known if self._known is not None else find_labels(labels, self._named())

    def open(self, folder: Path) -> None:
        """Work with an entry of the cache."""
        self.folder = folder
        self.tokenizer.load(folder / "tokenizer.json")
        self.labels = read_labels(folder)

    def check_entry(self, folder: Path) -> None:
        """Reads an entry of the cache.

        Raises:
            Exception: something in it cannot be.
        """
        self.open(folder)
        if not isinstance(self.labels, list) or not all(isinstance(label, str) for label in self.labels):
            raise Damaged("labels.json is no list of names")
        for split in ("train", "validation"):
            self._check_split(folder, split)

    @abstractmethod
    def _check_split(self, folder: Path, split: str) -> None:
        """The same of a split, with `tokenizer` and `labels` as they are in the entry."""

    def prepare(self) -> None:
        self.open(cache.entry(self.cache_dir, self.fingerprint(), self._write, self.check_entry))

    def sizes(self) -> dict[str, int]:
        known = bool(self.labels)
        return {
            "vocab_size": self.tokenizer.vocab_size if known else 1,
            "max_len": self.seq_len,
            "num_labels": len(self.labels) if known else 1,
        }

    def unit(self) -> str:
        return f"texts of up to {self.seq_len} tokens"

    def save(self, run_dir: Path) -> None:
        self.tokenizer.save(run_dir / "tokenizer.json")
        write_labels(run_dir, self.labels)

    def check_saved(self, run_dir: Path) -> None:
        same = self.tokenizer.is_in(run_dir / "tokenizer.json")
        if read_labels(run_dir) != self.labels or not same:
            raise UserError(
                f"resume={run_dir}: the data have changed since the run began and have other labels or make another "
                "tokenizer: put them back, or start a new run"
            )

    def _named(self) -> str:
        """The source in the words of the command line."""
        return "the data"
