"""Texts, or pairs of texts, with a label each: encoded once, kept, and read as padded batches."""

import linecache
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtrain.data import cache
from txtrain.data.base import Origin
from txtrain.data.labelled import LabelledData
from txtrain.data.labels import balance, check_classes, check_known, split_by_group, write_labels
from txtrain.data.packing import IGNORED, PADDING
from txtrain.data.padded import RowMaker
from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError

CHUNK = 2000  # examples encoded at a time, on all cores
SHOWN_TOKENS = 24  # of a text, to who looks for it


@dataclass(frozen=True, kw_only=True)
class Example:
    """A text with its label.

    Args:
        text: the text, or the first of a pair.
        pair: the second one, if there is one.
        label: the name of its class.
        group: examples of one group are never on both sides of the split; without one, those of equal texts.
        place: where it stands, in words.
    """

    text: str
    pair: str | None = None
    label: str
    group: str | None = None
    place: str = ""

    @property
    def key(self) -> str:
        return self.group if self.group is not None else f"{self.text}\0{self.pair or ''}"


class LabelledText(LabelledData):
    """Samples `<cls> text <sep>`, or `<cls> text <sep> pair <sep>`, with a label; a subclass says where they come from.

    A pretrained tokenizer's file may have other tokens between a pair.

    Args:
        base: as in `LabelledData`; a longer sample is cut, of a pair the longer text first.
    """

    content = "labelled text"

    @abstractmethod
    def examples(self) -> Iterator[Example]:
        """All of them, in the same order whenever it is called."""

    def validation_examples(self) -> Iterator[Example] | None:
        """Examples to validate on, where the user gave them apart."""
        return None

    def prepare(self) -> None:
        """Make or find the encoded examples, and refuse those that could not be trained on."""
        super().prepare()
        train, validation = (self.samples(split).counts(self.labels) for split in ("train", "validation"))
        check_classes(train, validation, self.labels, self._named(), own=self._known is None)

    def samples(self, split: Literal["train", "validation"]) -> "LabelledSamples":
        """The examples of a split."""
        return LabelledSamples(self.folder, split, tokenizer=self.tokenizer, seq_len=self.seq_len)

    def label_counts(self) -> list[int]:
        return self.samples("train").counts(self.labels)

    def label_numbers(self) -> NDArray[np.int64]:
        return self.samples("train").labels.astype(np.int64)

    def description(self) -> str:
        train, validation = (len(self.samples(split)) for split in ("train", "validation"))
        return f"{train} examples to train on, {validation} to validate; vocabulary of {self.tokenizer.vocab_size}"

    def details(self) -> dict[str, str]:
        train, validation = self.samples("train"), self.samples("validation")
        longer = train.count_longer() + validation.count_longer()
        return {
            "labels": balance(train.counts(self.labels), self.labels),
            "validation": balance(validation.counts(self.labels), self.labels),
            "too long": f"{longer} of more than data.seq_len={self.seq_len} tokens, cut there",
        }

    def origin(self, index: int) -> Origin:
        samples = self.samples("train")
        text = self.tokenizer.decode(samples.first(index)[:SHOWN_TOKENS].tolist())
        return Origin(places=[samples.place(index)], text=text)

    def _check_split(self, folder: Path, split: str) -> None:
        ends, labels, pairs = (np.load(folder / f"{split}.{name}.npy") for name in ("ends", "labels", "pairs"))
        count, tokens, dtype = len(ends) - 1, int(ends[-1, 1]), cache.token_type(self.tokenizer)
        cache.check_ends(f"{split}.ends.npy", ends.ravel(), last=tokens)
        cache.check_numbers(f"{split}.labels.npy", labels, count=count, bound=len(self.labels))
        cache.check_numbers(f"{split}.pairs.npy", pairs.astype(np.int64), count=count, bound=2)
        cache.check_places(folder / f"{split}.places.txt", count)
        cache.check_tokens(folder / f"{split}.bin", dtype, self.tokenizer, tokens=tokens)

    def _write(self, folder: Path) -> None:
        train, apart = list(self.examples()), self.validation_examples()
        validation = list(apart) if apart is not None else []
        if apart is not None and not validation:
            raise UserError("data.validation_path has nothing to validate on: name other files, or leave it out")
        labels = self.find_labels(example.label for example in train)
        if apart is None:
            keys, names = [example.key for example in train], [example.label for example in train]
            held_out = split_by_group(keys, names, self.validation_fraction)
            validation = [example for example, out in zip(train, held_out, strict=True) if out]
            train = [example for example, out in zip(train, held_out, strict=True) if not out]
        check_known(((example.label, example.place) for example in validation), labels)
        self.tokenizer.fit(text for example in train for text in (example.text, example.pair) if text)
        write_labels(folder, labels)
        self.tokenizer.save(folder / "tokenizer.json")
        for split, examples in (("train", train), ("validation", validation)):
            write_samples(folder, split, examples, self.tokenizer, labels)


def write_samples(
    folder: Path, split: str, examples: Sequence[Example], tokenizer: Tokenizer, labels: Sequence[str]
) -> None:
    """Encodes the examples of a split into an entry of the cache."""
    dtype, numbers = cache.token_type(tokenizer), {label: number for number, label in enumerate(labels)}
    ends, end = np.zeros((len(examples) + 1, 2), dtype=np.int64), 0
    with (folder / f"{split}.bin").open("wb") as file:
        for begin in range(0, len(examples), CHUNK):
            chunk = examples[begin : begin + CHUNK]
            first = tokenizer.encode_batch([example.text for example in chunk])
            second = tokenizer.encode_batch([example.pair or "" for example in chunk])
            for row, (one, other) in enumerate(zip(first, second, strict=True), start=begin + 1):
                np.array([*one, *other], dtype=dtype).tofile(file)
                ends[row] = end + len(one), end + len(one) + len(other)
                end = int(ends[row, 1])
    np.save(folder / f"{split}.ends.npy", ends)
    np.save(folder / f"{split}.labels.npy", np.array([numbers[example.label] for example in examples], dtype=np.int64))
    np.save(folder / f"{split}.pairs.npy", np.array([example.pair is not None for example in examples], dtype=bool))
    places = "".join(" ".join(example.place.split()) + "\n" for example in examples)
    (folder / f"{split}.places.txt").write_text(places, encoding="utf-8")


class LabelledSamples:
    """Encoded examples of a split as padded rows.

    A batch has `tokens` and `padding` (B, T), `targets` and `index` (B,), and with pairs `types` (B, T), 1 for the
    second text; T is the length of its longest row.

    Args:
        folder: the cache's entry.
        split: whose examples they are.
        tokenizer: that encoded them.
        seq_len: most tokens of a row.
    """

    def __init__(self, folder: Path, split: str, *, tokenizer: Tokenizer, seq_len: int) -> None:
        self.folder, self.split, self.seq_len = folder, split, seq_len
        self.labels = np.load(folder / f"{split}.labels.npy")
        self._ends, self._pairs = np.load(folder / f"{split}.ends.npy"), np.load(folder / f"{split}.pairs.npy")
        self._tokens = np.fromfile(folder / f"{split}.bin", dtype=cache.token_type(tokenizer))
        self.rows = RowMaker(tokenizer, seq_len=seq_len)
        self.filled = {"tokens": self.rows.filler, "padding": False, "types": 0}

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: NDArray[np.int64], epoch: int = 0) -> dict[str, Tensor]:
        """The examples with these indices, `PADDING` for an empty row."""
        rows = [None if i == PADDING else (self.first(i), self.second(i)) for i in index.tolist()]
        batch = self.rows.batch(rows, types=bool(self._pairs.any()))
        batch["targets"] = torch.from_numpy(np.where(index == PADDING, IGNORED, self.labels[index]))
        batch["num_tokens"] = batch["padding"].sum(1)
        batch["index"] = torch.from_numpy(index.astype(np.int64))
        return batch

    def first(self, index: int) -> NDArray[np.int64]:
        """The tokens of a text."""
        return self._tokens[self._ends[index, 1] : self._ends[index + 1, 0]].astype(np.int64)

    def second(self, index: int) -> NDArray[np.int64] | None:
        """The tokens of the other text of a pair."""
        if not self._pairs[index]:
            return None
        return self._tokens[self._ends[index + 1, 0] : self._ends[index + 1, 1]].astype(np.int64)

    def counts(self, labels: Sequence[str]) -> list[int]:
        """How many examples each label has."""
        return np.bincount(self.labels, minlength=len(labels)).tolist()

    def count_longer(self) -> int:
        """How many examples are cut."""
        lengths = np.diff(self._ends[:, 1]) + 2 + self._pairs * len(self.rows.between)
        return int((lengths > self.seq_len).sum())

    def place(self, index: int) -> str:
        return linecache.getline(str(self.folder / f"{self.split}.places.txt"), index + 1).rstrip("\n")
