"""Long texts are encoded in pieces, cut where the tokenizer begins a new token whatever stands around.

A cut is tried where a word ends, and taken if the text around it gives the same tokens in two pieces as in one. Some
tokenizers write the space before a word themselves at the beginning of a text: there the second piece lacks its space.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from txtrain.data.long_text import Text, parts_of
from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError

PIECE = 500_000  # characters after which a text is cut
UNCUT = 2_500_000  # most characters of a piece: with more, encoding takes more memory than there should be
AROUND = 256  # characters on both sides of a cut that are compared
TRIES = 20  # places of each kind that are compared

# After a letter or sign, the best first: a lone line end, a space, a line end, and where scripts have no spaces, a sign
# or a number after a letter.
_PLACES = [
    re.compile(place)
    for place in (
        r"(?<=\S\n)(?=\S)",
        r"(?<=\w)(?= \w)",
        r"(?<=\S)(?= \S)",
        r"(?<=\S)(?=\s)",
        r"(?<=[^\W\d_])(?=[^\w\s])",
        r"(?<=[^\W\d_])(?=\d)",
    )
]


class Piece(NamedTuple):
    """A part of a text, with the bytes that it stands for in UTF-8 and whether it is the last."""

    text: str
    size: int
    last: bool


def pieces(text: Text, tokenizer: Tokenizer) -> Iterator[Piece]:
    """A text in pieces that give its tokens one after the other.

    Raises:
        UserError: too long a part of the text cannot be cut.
    """
    held, tried = "", 0
    for part in _merged(parts_of(text)):
        held += part
        while len(held) > PIECE + AROUND:
            found = (PIECE, PIECE) if tokenizer.cuts_anywhere else _find(held, max(PIECE, tried), tokenizer)
            if found is None:
                tried = max(PIECE, len(held) - AROUND)
                break
            end, start = found
            yield Piece(held[:end], len(held[:start].encode()), last=False)
            held, tried = held[start:], 0
        if len(held) > UNCUT:
            shown = " ".join(held[:40].split())
            raise UserError(
                f"a text has {len(held):,} characters ('{shown} ...') that the tokenizer cannot cut anywhere, and at "
                f"most {UNCUT:,} are read as one: put spaces or line ends into it, or leave it out"
            )
    yield Piece(held, len(held.encode()), last=True)


def _merged(parts: Iterable[str]) -> Iterator[str]:
    """Parts of at least a piece, but for the last: so that little is looked at twice."""
    held: list[str] = []
    for part in parts:
        held.append(part)
        if sum(map(len, held)) >= PIECE:
            yield "".join(held)
            held = []
    yield "".join(held)


def _find(text: str, start: int, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Where a piece ends and the next one starts."""
    for place in _PLACES:
        for tries, match in enumerate(place.finditer(text, start, len(text) - AROUND)):
            if tries == TRIES:
                break
            if (begin := _begin(text, match.start(), tokenizer)) is not None:
                return match.start(), begin
    return None


def _begin(text: str, cut: int, tokenizer: Tokenizer) -> int | None:
    """Where the second piece begins if the first ends at `cut`, if that changes no token."""
    first, second = text[cut - AROUND : cut], text[cut : cut + AROUND]
    starts = [0, 1] if second[0] == " " else [0]
    together, before, *after = tokenizer.encode_batch([first + second, first, *(second[start:] for start in starts)])
    return next((cut + start for start, ids in zip(starts, after, strict=True) if before + ids == together), None)
