"""A translation memory: pairs that are looked up by how much their sources have in common with a text."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter

from txtrain.data.parallel import Pair
from txtrain.data.split import linked
from txtrain.errors import UserError
from txtrain.records import Record, checked, read_text

FILE = "memory.jsonl"  # in a run's folder
LONGEST = 5  # characters of a piece

PAIRS = TypeAdapter(list[Annotated[list[str], Field(min_length=2, max_length=2)]])

_WORD = re.compile(r"\w+|[^\w\s]")


class Options(Record):
    """How texts are read: the first line of the file."""

    language: str
    matches: bool


class Memory:
    """What an encoder reads of a text: lines with the target of the pair most like it, the language, and the text.

    With the translation of a similar text in sight the decoder can copy what holds of this one too and repair the rest
    (neural fuzzy repair, https://aclanthology.org/P19-1175). It comes first, so that a word of it and its copy are
    about equally far from the beginning. Likeness is the sum of two cosines of tf-idf vectors: of pieces of 2 to 5
    characters, and of words and pairs of words.

    Args:
        pairs: those that are looked up.
        language: the line before the text; none if it is empty.
        matches: whether a target is the first line.
    """

    def __init__(self, pairs: Sequence[Pair], *, language: str = "", matches: bool = True) -> None:
        self.pairs, self.language, self.matches = list(pairs), language, matches
        self._vectors: list[Vectors] = []
        if matches:
            sources = [pair.source for pair in self.pairs]
            self._vectors = [Vectors(sources, cut) for cut in (pieces, words)]

    def likeness(self, text: str) -> NDArray[np.float64]:
        """(N,) that of each pair's source, from 0 to 2."""
        return sum((vectors.cosines(text) for vectors in self._vectors), np.zeros(len(self.pairs)))

    def nearest(self, text: str, barred: Sequence[int] = ()) -> Pair | None:
        """The pair most like a text, but for those with the numbers in `barred`; None if none has anything of it."""
        likeness = self.likeness(text)
        likeness[list(barred)] = 0
        return self.pairs[int(likeness.argmax())] if likeness.any() else None

    def asked(self, text: str, barred: Sequence[int] = ()) -> str:
        """A text as the encoder reads it."""
        found = self.nearest(text, barred) if self.matches else None
        return self._lines(text, found.target if found else "")

    def own(self, *, repeat: int = 1, practice: float = 0.0, seed: int = 0) -> list[Pair]:
        """Its pairs to train on: the source of each as it is read, with the target of another one.

        Pairs that share a source or a target are no matches of each other: what is translated later shares none either.

        Args:
            repeat: how often each pair is there.
            practice: the share of them that have, in place of a match, their own target, with words missing or wrong:
                so a model learns early to copy what fits.
            seed: of which, and of what is wrong.
        """
        groups: dict[str, list[int]] = {}
        names = linked((pair.source, pair.target) for pair in self.pairs)
        for number, name in enumerate(names):
            groups.setdefault(name, []).append(number)
        read = [self.asked(pair.source, groups[name]) for pair, name in zip(self.pairs, names, strict=True)]
        rng, found = np.random.default_rng(seed), []
        for _ in range(repeat):
            for pair, text in zip(self.pairs, read, strict=True):
                if self.matches and rng.random() < practice:
                    other = self.pairs[int(rng.integers(len(self.pairs)))]
                    text = self._lines(pair.source, spoiled(pair.target, other.target, rng))
                found.append(pair._replace(source=text))
        return found

    def _lines(self, text: str, match: str) -> str:
        before = [_one_line(match)] * self.matches + [self.language] * bool(self.language)
        return "\n".join([*before, _one_line(text)])

    def save(self, folder: Path) -> None:
        """Writes the pairs, and how texts are read."""
        pairs = self.pairs if self.matches else []
        rows = [{"language": self.language, "matches": self.matches}, *([*pair[:2]] for pair in pairs)]
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Memory | None":
        """What `save` wrote; None where nothing was."""
        file = folder / FILE
        if not os.path.lexists(file):
            return None
        try:
            how, *pairs = [json.loads(line) for line in read_text(file).split("\n") if line]
            options = checked(file, how, TypeAdapter(Options))
            texts = checked(file, pairs, PAIRS)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} cannot be read ({error}): restore it or name another run") from error
        return cls([Pair(source, target) for source, target in texts], **options.model_dump())


class Vectors:
    """Texts as tf-idf vectors of length 1.

    Args:
        texts: to compare with.
        cut: the parts of a text, each as often as it is there.
    """

    def __init__(self, texts: Sequence[str], cut: Callable[[str], Iterable[str]]) -> None:
        self._cut, self._size = cut, len(texts)
        self._numbers: dict[str, int] = {}
        counts = [Counter(cut(text)) for text in texts]
        for found in counts:
            for part in found:
                self._numbers.setdefault(part, len(self._numbers))
        parts = np.array([self._numbers[part] for found in counts for part in found], dtype=np.int64)
        spread = np.bincount(parts, minlength=len(self._numbers))  # in how many texts each part is
        self._rarity = np.log((1 + len(texts)) / (1 + spread)) + 1
        order = np.argsort(parts, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(spread)])
        self._texts = np.repeat(np.arange(len(texts)), [len(found) for found in counts])[order]
        self._weights = np.concatenate([np.zeros(0), *(self._weigh(found)[1] for found in counts)])[order]

    def cosines(self, text: str) -> NDArray[np.float64]:
        """(N,) those of each text with this one, whose unknown parts count for nothing."""
        parts, weights = self._weigh(Counter(self._cut(text)))
        starts, sizes = self._starts[parts], self._starts[parts + 1] - self._starts[parts]
        # All places of all parts' lists, one list after the other.
        places = np.arange(int(sizes.sum())) + np.repeat(starts - np.cumsum(sizes) + sizes, sizes)
        products = np.repeat(weights, sizes) * self._weights[places]
        return np.bincount(self._texts[places], products, minlength=self._size).astype(np.float64)

    def _weigh(self, counts: Counter[str]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The numbers of the parts that are known, and their weights in a vector of length 1."""
        known = [(self._numbers[part], count) for part, count in counts.items() if part in self._numbers]
        parts, often = np.array(known, dtype=np.int64).reshape(-1, 2).T
        weights = (1 + np.log(often)) * self._rarity[parts]
        return parts, weights / max(float(np.linalg.norm(weights)), 1e-12)


def spoiled(text: str, other: str, rng: np.random.Generator) -> str:
    """A text without some of its words, and with others in place of some: up to half of them, and of those half."""
    given, strange, rate = text.split(), other.split(), rng.random() / 2
    left = [(word, draw) for word, draw in zip(given, rng.random(len(given)), strict=True) if draw >= rate / 2]
    return " ".join(str(rng.choice(strange)) if draw < rate and strange else word for word, draw in left)


def pieces(text: str) -> list[str]:
    """Of 2 to `LONGEST` characters, without regard to case."""
    text = f" {_one_line(text.casefold())} "
    return [text[i : i + size] for size in range(2, LONGEST + 1) for i in range(len(text) - size + 1)]


def words(text: str) -> list[str]:
    """Words and signs, and pairs of neighbours, without regard to case."""
    found = _WORD.findall(text.casefold())
    return [*found, *(f"{a} {b}" for a, b in pairwise(found))]


def _one_line(text: str) -> str:
    return " ".join(text.split())
