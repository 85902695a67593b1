"""Sequences of words with a tag each, aligned with the tokens that the words are made of."""

import linecache
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtrain.data import cache
from txtrain.data.base import Origin
from txtrain.data.labelled import LabelledData
from txtrain.data.labels import balance, check_known, write_labels
from txtrain.data.packing import IGNORED, PADDING
from txtrain.data.padded import RowMaker
from txtrain.data.split import Split
from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError

CHUNK = 500  # sentences encoded at a time, on all cores
SHOWN_TOKENS = 24  # of a sentence, to who looks for it


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """Words with tags.

    Args:
        words: each with the space before it, if there is one.
        tags: of each word.
        group: sentences of one group are never on both sides of the split; without one, those of equal words.
        place: where it stands, in words.
    """

    words: Sequence[str]
    tags: Sequence[str]
    group: str | None = None
    place: str = ""

    @property
    def key(self) -> str:
        return self.group if self.group is not None else "\0".join(self.words)


class TaggedText(LabelledData):
    """Samples `<cls> words <sep>`, in which the first token of each word has the word's tag as its target.

    A sentence of more than `seq_len` tokens becomes several samples, cut between words.

    Args:
        base: as in `LabelledData`.
    """

    content = "tagged text"

    @abstractmethod
    def sentences(self) -> Iterator[Sentence]:
        """All of them, in the same order whenever it is called."""

    def validation_sentences(self) -> Iterator[Sentence] | None:
        """Sentences to validate on, where the user gave them apart."""
        return None

    def prepare(self) -> None:
        """Make or find the encoded sentences, and refuse those that could not be trained on."""
        super().prepare()
        if not len(self.samples("validation")):
            raise UserError(
                f"{self._named()} leaves nothing to validate on: give more, or set data.validation_fraction=0.5"
            )

    def samples(self, split: Literal["train", "validation"]) -> "TaggedSamples":
        """The samples of a split."""
        return TaggedSamples(self.folder, split, tokenizer=self.tokenizer, seq_len=self.seq_len)

    def label_counts(self) -> list[int]:
        return self.samples("train").counts(self.labels)

    def description(self) -> str:
        train, validation = (len(self.samples(split)) for split in ("train", "validation"))
        return f"{train} samples to train on, {validation} to validate; vocabulary of {self.tokenizer.vocab_size}"

    def details(self) -> dict[str, str]:
        train, validation = self.samples("train"), self.samples("validation")
        return {
            "tags": balance(train.counts(self.labels), self.labels),
            "validation": balance(validation.counts(self.labels), self.labels),
        }

    def origin(self, index: int) -> Origin:
        samples = self.samples("train")
        text = self.tokenizer.decode(samples.tokens(index)[:SHOWN_TOKENS].tolist())
        return Origin(places=[samples.place(index)], text=text)

    def _encoding(self) -> dict[str, Any]:
        return {"seq_len": self.seq_len}

    def _check_split(self, folder: Path, split: str) -> None:
        ends, tokens, tags = (np.load(folder / f"{split}.{name}.npy") for name in ("ends", "tokens", "tags"))
        count = int(ends[-1])
        cache.check_ends(f"{split}.ends.npy", ends, last=count)
        cache.check_numbers(f"{split}.tokens.npy", tokens.astype(np.int64), count=count, bound=self.tokenizer.id_bound)
        cache.check_places(folder / f"{split}.places.txt", len(ends) - 1)
        known = np.where(tags == IGNORED, 0, tags)
        cache.check_numbers(f"{split}.tags.npy", known, count=count, bound=len(self.labels))

    def _write(self, folder: Path) -> None:
        train, apart = list(self.sentences()), self.validation_sentences()
        validation = list(apart) if apart is not None else []
        if apart is not None and not validation:
            raise UserError("data.validation_path has nothing to validate on: name other files, or leave it out")
        labels = self.find_labels(tag for sentence in train for tag in sentence.tags)
        if apart is None:
            split = Split.of(((sentence.key, "") for sentence in train), fraction=self.validation_fraction)
            validation = [sentence for sentence, out in zip(train, split.held_out, strict=True) if out]
            train = [sentence for sentence, out in zip(train, split.held_out, strict=True) if not out]
        check_known(((tag, sentence.place) for sentence in validation for tag in sentence.tags), labels)
        self.tokenizer.fit("".join(sentence.words) for sentence in train)
        write_labels(folder, labels)
        self.tokenizer.save(folder / "tokenizer.json")
        for split_name, sentences in (("train", train), ("validation", validation)):
            write_samples(folder, split_name, sentences, self.tokenizer, labels, self.seq_len)


def write_samples(
    folder: Path,
    split: str,
    sentences: Sequence[Sentence],
    tokenizer: Tokenizer,
    labels: Sequence[str],
    seq_len: int,
) -> None:
    """Encodes the sentences of a split into an entry of the cache."""
    numbers = {label: number for number, label in enumerate(labels)}
    tokens: list[NDArray[np.int64]] = []
    tags: list[NDArray[np.int64]] = []
    places: list[str] = []
    for begin in range(0, len(sentences), CHUNK):
        chunk = sentences[begin : begin + CHUNK]
        words = tokenizer.encode_batch([word for sentence in chunk for word in sentence.words])
        start = 0
        for sentence in chunk:
            encoded = words[start : start + len(sentence.words)]
            start += len(sentence.words)
            for first, last in cut(encoded, seq_len - 2):
                pieces, piece_tags = encoded[first:last], sentence.tags[first:last]
                row, heads = join(pieces, seq_len - 2)
                marked = np.full(len(row), IGNORED)
                there = heads >= 0
                marked[heads[there]] = np.array([numbers[tag] for tag in piece_tags], dtype=np.int64)[there]
                tokens.append(row)
                tags.append(marked)
                places.append(" ".join(sentence.place.split()))
    ends = np.cumsum([0, *(len(row) for row in tokens)])
    np.save(folder / f"{split}.ends.npy", ends)
    empty = [np.zeros(0, dtype=np.int64)]
    np.save(folder / f"{split}.tokens.npy", np.concatenate(tokens or empty).astype(cache.token_type(tokenizer)))
    np.save(folder / f"{split}.tags.npy", np.concatenate(tags or empty).astype(np.int32))
    (folder / f"{split}.places.txt").write_text("".join(f"{place}\n" for place in places), encoding="utf-8")


def cut(words: Sequence[Sequence[int]], most: int) -> list[tuple[int, int]]:
    """Ranges of words, encoded, of at most so many tokens together; a longer word has one for itself."""
    ranges, first, length = [], 0, 0
    for number, word in enumerate(words):
        if length + len(word) > most and number > first:
            ranges.append((first, number))
            first, length = number, 0
        length += len(word)
    return [*ranges, (first, len(words))] if len(words) > first else ranges


def join(words: Sequence[Sequence[int]], most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Encoded words → their tokens, cut at the most, and where each word begins, -1 where nothing of it is there."""
    lengths = np.array([len(word) for word in words], dtype=np.int64)
    begins = np.cumsum(lengths) - lengths
    row = np.array([token for word in words for token in word], dtype=np.int64)[:most]
    return row, np.where((lengths > 0) & (begins < most), begins, -1)


class TaggedSamples:
    """Encoded sentences of a split as padded rows.

    A batch has `tokens`, `padding` and `targets` (B, T), `IGNORED` but at the first token of each word, and `index`
    (B,); T is the length of its longest row.

    Args:
        folder: the cache's entry.
        split: whose sentences they are.
        tokenizer: that encoded them.
        seq_len: most tokens of a row.
    """

    def __init__(self, folder: Path, split: str, *, tokenizer: Tokenizer, seq_len: int) -> None:
        self.folder, self.split, self.seq_len = folder, split, seq_len
        self._ends = np.load(folder / f"{split}.ends.npy")
        self._tokens = np.load(folder / f"{split}.tokens.npy")
        self._tags = np.load(folder / f"{split}.tags.npy")
        self.rows = RowMaker(tokenizer, seq_len=seq_len)
        self.filled = {"tokens": self.rows.filler, "padding": False, "targets": IGNORED}

    def __len__(self) -> int:
        return len(self._ends) - 1

    def batch(self, index: NDArray[np.int64], epoch: int = 0) -> dict[str, Tensor]:
        """The samples with these indices, `PADDING` for an empty row."""
        batch = self.rows.batch([None if i == PADDING else (self.tokens(i), None) for i in index.tolist()])
        targets = np.full(tuple(batch["tokens"].shape), IGNORED, dtype=np.int64)
        for row, i in enumerate(index.tolist()):
            if i != PADDING:
                tags = self._tags[self._ends[i] : self._ends[i + 1]]
                targets[row, 1 : 1 + len(tags)] = tags
        batch["num_tokens"] = batch["padding"].sum(1)
        return batch | {"targets": torch.from_numpy(targets), "index": torch.from_numpy(index.astype(np.int64))}

    def tokens(self, index: int) -> NDArray[np.int64]:
        """The tokens of a sample's words."""
        return self._tokens[self._ends[index] : self._ends[index + 1]].astype(np.int64)

    def counts(self, labels: Sequence[str]) -> list[int]:
        """How many words have each tag."""
        return np.bincount(self._tags[self._tags != IGNORED], minlength=len(labels)).tolist()

    def place(self, index: int) -> str:
        return linecache.getline(str(self.folder / f"{self.split}.places.txt"), index + 1).rstrip("\n")
