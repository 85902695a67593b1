"""Word and character error rates, as counts that add up over batches and ranks."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Edits:
    """Of some transcripts: edits that turn them into what was said, and how much that was.

    Attributes:
        words, word_edits: words that were said, and substitutions, deletions and insertions of words.
        characters, character_edits: the same of characters, spaces between words among them.
    """

    words: int
    word_edits: int
    characters: int
    character_edits: int

    @classmethod
    def of(cls, said: Sequence[str], heard: Sequence[str]) -> "Edits":
        """Counted as jiwer does: words are what spaces separate, spaces at both ends count for nothing."""
        pairs = list(zip(said, heard, strict=True))
        words = [(a.split(), b.split()) for a, b in pairs]
        characters = [(a.strip(), b.strip()) for a, b in pairs]
        return cls(
            words=sum(len(a) for a, _ in words),
            word_edits=sum(distance(a, b) for a, b in words),
            characters=sum(len(a) for a, _ in characters),
            character_edits=sum(distance(a, b) for a, b in characters),
        )


def distance(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """The fewest substitutions, deletions and insertions from one to the other (Levenshtein)."""
    number: dict[Hashable, int] = {}
    a, b = (
        np.array([number.setdefault(item, len(number)) for item in items], dtype=np.int64) for items in (one, other)
    )
    column = np.arange(len(b) + 1)
    row = column.copy()
    for i, item in enumerate(a, start=1):
        row[1:] = np.minimum(row[1:] + 1, row[:-1] + (b != item))
        row[0] = i
        # An insertion costs 1 more than the cell on its left: the least of all on the left, each plus its distance.
        row = np.minimum.accumulate(row - column) + column
    return int(row[-1])
