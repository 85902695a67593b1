"""The split into training and validation: by a hash of each document, so that it survives reordering and additions."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Document = tuple[str, str]
"""What the split goes by (a path, or the text itself), and the text."""


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
        rows = [(_score(key), len(text)) for key, text in documents]
        scores = np.array([score for score, _ in rows], dtype=np.float64)
        return cls(scores, np.array([length for _, length in rows], dtype=np.int64), fraction)

    @property
    def held_out(self) -> NDArray[np.bool_]:
        """True for validation; both sides have a document wherever there are two, unless one side is all."""
        held_out = self.scores < self.fraction
        if 0 < self.fraction < 1 and len(held_out) > 1 and (held_out.all() or not held_out.any()):
            # All that have the same key are on one side, unless there is no other.
            order = self.scores.argsort(kind="stable")
            first, last = self.scores[order[[0, -1]]]
            held_out[self.scores == last if first != last else order[-1]] = False
            held_out[self.scores == first if first != last else order[0]] = True
        return held_out

    def texts(self, documents: Iterable[Document], *, validation: bool) -> Iterator[str]:
        """One side of the split. A single document is cut: its last part is held out."""
        if len(self.scores) == 1 and self.fraction:
            for _, text in documents:
                cut = int(len(text) * (1 - self.fraction))
                yield text[cut:] if validation else text[:cut]
            return
        for (_, text), held_out in zip(documents, self.held_out, strict=True):
            if held_out == validation:
                yield text

    def sample(self, documents: Iterable[Document], characters: int | None) -> Iterator[str]:
        """Training documents, or if they are longer than that, a fair sample of about so many characters."""
        if characters is None or len(self.scores) == 1:
            yield from self.texts(documents, validation=False)
            return
        training = np.flatnonzero(~self.held_out)
        drawn = training[self.scores[training].argsort(kind="stable")]
        before = np.cumsum(self.lengths[drawn]) - self.lengths[drawn]
        chosen = set(drawn[before < characters].tolist())
        yield from (text for number, (_, text) in enumerate(documents) if number in chosen)


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
