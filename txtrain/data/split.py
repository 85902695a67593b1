"""The split into training and validation: by a hash of each document, so that it survives reordering and additions."""

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from tempfile import TemporaryFile
from typing import IO

import numpy as np
from numpy.typing import NDArray

from txtrain.data.long_text import Text, beginning, part_of, parts_of
from txtrain.data.progress import Progress

Document = tuple[Text, Text]
"""What the split goes by (a path, or the text itself), and the text."""

ROWS = 1 << 18  # documents whose numbers are held in memory


@dataclass(frozen=True)
class Split:
    """Which documents are held out.

    Args:
        scores: a hash of each document as a number in [0, 1).
        lengths: characters of each document.
        fraction: of the documents to hold out; 1 leaves none to train on.
    """

    scores: NDArray[np.float64]
    lengths: NDArray[np.int64]
    fraction: float

    @classmethod
    def of(cls, documents: Iterable[Document], fraction: float) -> "Split":
        """Reads all documents once. The numbers of many lie in a file that has no name, not in memory."""
        found = _Rows()
        with Progress("reading the text", unit="characters") as progress:
            for key, text in documents:
                found.append(*_measure(key, text, progress))
        scores, lengths = found.arrays()
        return cls(scores, lengths, fraction)

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        """True for validation; both sides have a document wherever there are two, unless one side is all."""
        held_out = self.scores < self.fraction
        if 0 < self.fraction < 1 and len(held_out) > 1 and (held_out.all() or not held_out.any()):
            # All that have the same key are on one side, unless there is no other.
            lowest, highest = int(self.scores.argmin()), len(self.scores) - 1 - int(self.scores[::-1].argmax())
            first, last = self.scores[lowest], self.scores[highest]
            held_out[self.scores == last if first != last else highest] = False
            held_out[self.scores == first if first != last else lowest] = True
        return held_out

    def sides(self, documents: Iterable[Document]) -> Iterator[tuple[Text, bool]]:
        """Each text, and whether it is for validation. A single document is cut: its last part is held out."""
        if len(self.scores) == 1 and self.fraction:
            for _, text in documents:
                cut = int(int(self.lengths[0]) * (1 - self.fraction))
                yield part_of(text, 0, cut), False
                yield part_of(text, cut), True
            return
        for (_, text), held_out in zip(documents, self.held_out, strict=True):
            yield text, bool(held_out)

    def sample(self, documents: Iterable[Document], characters: int | None) -> Iterator[str]:
        """Training documents, or if they are longer than that, a fair sample of about so many characters.

        Documents are drawn by their scores, so the sample is the same on every machine.
        """
        if characters is None or len(self.scores) == 1:
            for text, held_out in self.sides(documents):
                if not held_out:
                    yield from parts_of(text) if characters is None else [beginning(text, characters)]
            return
        chosen = self._draw(characters)
        for number, (_, text) in enumerate(documents):
            if number in chosen:
                yield beginning(text, characters)
                chosen.remove(number)
            if not chosen:
                return

    def _draw(self, characters: int) -> set[int]:
        """The training documents of lowest score, as many as have so many characters before the last of them."""
        drawn = np.zeros(0, dtype=np.int64)
        for start in range(0, len(self.scores), ROWS):  # of some, none that is beyond the end is among the first of all
            training = start + np.flatnonzero(~self.held_out[start : start + ROWS])
            drawn = np.concatenate([drawn, training])
            drawn = drawn[self.scores[drawn].argsort(kind="stable")]
            before = np.cumsum(self.lengths[drawn]) - self.lengths[drawn]
            drawn = drawn[before < characters]
        return set(drawn.tolist())


class _Rows:
    """Two numbers for each document, in a file where there are many."""

    def __init__(self) -> None:
        self._scores: array[float] = array("d")
        self._lengths: array[int] = array("q")
        self._files: list[IO[bytes]] = []

    def append(self, score: float, length: int) -> None:
        self._scores.append(score)
        self._lengths.append(length)
        if len(self._scores) >= ROWS:
            self._files = self._files or [TemporaryFile(), TemporaryFile()]  # noqa: SIM115 - mapped for as long as used
            for file, column in zip(self._files, self._columns, strict=True):
                column.tofile(file)
                del column[:]

    @property
    def _columns(self) -> "tuple[array[float] | array[int], ...]":
        return self._scores, self._lengths

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if not self._files:
            return np.array(self._scores, dtype=np.float64), np.array(self._lengths, dtype=np.int64)
        for file, column in zip(self._files, self._columns, strict=True):
            column.tofile(file)
            file.flush()
        scores, lengths = self._files
        return np.memmap(scores, np.float64, "r"), np.memmap(lengths, np.int64, "r")


def _measure(key: Text, text: Text, progress: Progress) -> tuple[float, int]:
    """The score of a document and its characters."""
    if isinstance(key, str) and isinstance(text, str):
        progress.advance(len(text))
        return _score(key), len(text)
    digest, length = hashlib.blake2b(digest_size=6), 0
    for part in parts_of(key):
        digest.update(part.encode(errors="surrogatepass"))
    for part in parts_of(text):
        length += len(part)
        progress.advance(len(part))
    return int.from_bytes(digest.digest(), "big") / 2**48, length


def _score(key: str) -> float:
    digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def linked(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """For each pair the name of its group: pairs with the same source or the same target are in one, and so on.

    Held out by group, no source and no target is on both sides of a split. Case, spaces and punctuation make no
    difference. A group is named by the first of its texts in the order of the alphabet.
    """
    names: dict[str, str] = {}  # of a text, another one in its group; the name of a group is its own

    def name(text: str) -> str:
        while (above := names.setdefault(text, text)) != text:
            names[text] = text = names[above]
        return text

    # A space before the targets' texts tells them from the sources'.
    keys = [(letters(source), f" {letters(target)}") for source, target in pairs]
    for source, target in keys:
        low, high = sorted((name(source), name(target)))
        names[high] = low
    return [name(source) for source, _ in keys]


def letters(text: str) -> str:
    """What is compared of a text: letters and digits without case, or all of it where it has none."""
    return "".join(re.findall(r"\w", text.casefold())) or text
