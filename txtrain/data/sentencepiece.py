"""SentencePiece's model files (https://arxiv.org/abs/1808.06226), read, and what `tokenizers` does the same with.

The format is a protocol buffer, of which a few fields matter: they are read here, and no other library is needed.
"""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from txtrain.errors import UserError

SPACE = "▁"  # what stands for one in pieces

Kind = Literal["unigram", "bpe", "word", "char"]
KINDS: dict[int, Kind] = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A token: its text, its log probability or the negative rank of its merge, and its type in the file."""

    text: str
    score: float
    type: int


@dataclass(frozen=True, kw_only=True)
class SentencePiece:
    """What a model file says.

    Args:
        pieces: by their numbers.
        kind: how text is cut into them.
        byte_fallback: whether unknown characters are written as their bytes.
        character_map: rules of normalisation, compiled; b"" if there are none.
        dummy_prefix: whether a space is put before the text.
        remove_extra_whitespaces: whether spaces at the ends go, and others become one.
        escape_whitespaces: whether pieces have ▁ for spaces.
    """

    pieces: tuple[Piece, ...]
    kind: Kind
    byte_fallback: bool
    character_map: bytes
    dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool

    @classmethod
    def read(cls, path: Path) -> "SentencePiece":
        """Reads a file, often called `*.model` or `*.spm`.

        Raises:
            UserError: it cannot be read, or is damaged.
        """
        try:
            return cls._parsed(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): put SentencePiece's model there") from error
        except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
            raise UserError(f"{path} is no model of SentencePiece ({error!r}): restore it") from error

    @classmethod
    def _parsed(cls, content: bytes) -> "SentencePiece":
        pieces, trainer, normalizer = [], dict[int, int | bytes](), dict[int, int | bytes]()
        for number, value in _fields(content):
            if number == 1:
                fields = dict(_fields(_nested(value)))
                (score,) = struct.unpack("<f", _nested(fields.get(2, b"\0\0\0\0")))
                kind = fields.get(3, NORMAL)
                pieces.append(Piece(text=_nested(fields[1]).decode(), score=score, type=int(kind)))
            elif number in (2, 3):
                (trainer if number == 2 else normalizer).update(_fields(_nested(value)))
        if not pieces:
            raise ValueError("it has no pieces")
        return cls(
            pieces=tuple(pieces),
            kind=KINDS[int(trainer.get(3, 1))],
            byte_fallback=bool(trainer.get(35, False)),
            character_map=_nested(normalizer.get(2, b"")),
            dummy_prefix=bool(normalizer.get(3, True)),
            remove_extra_whitespaces=bool(normalizer.get(4, True)),
            escape_whitespaces=bool(normalizer.get(5, True)),
        )

    @property
    def user_defined(self) -> list[str]:
        """Pieces that are cut out of a text before all others."""
        return [piece.text for piece in self.pieces if piece.type == USER_DEFINED]

    def normalizer(self) -> normalizers.Normalizer:
        """As SentencePiece does it, in its order."""
        steps: list[normalizers.Normalizer] = []
        if self.character_map:
            steps.append(normalizers.Precompiled(self.character_map))
        if self.remove_extra_whitespaces:
            steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        if self.escape_whitespaces:
            steps.append(normalizers.Replace(" ", SPACE))
        if self.dummy_prefix:  # Metaspace leaves it out where the text has a space there
            steps.append(normalizers.Replace(Regex(rf"\A{SPACE}"), SPACE + SPACE))
        return normalizers.Sequence(steps)

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The space before the text, and pieces that are cut out of it."""
        steps: list[pre_tokenizers.PreTokenizer] = []
        if self.dummy_prefix:
            steps.append(pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always", split=False))
        if self.user_defined:
            longest_first = sorted(self.user_defined, key=len, reverse=True)
            steps.append(pre_tokenizers.Split(Regex("|".join(map(re.escape, longest_first))), behavior="isolated"))
        return pre_tokenizers.Sequence(steps)

    def decoder(self) -> list[decoders.Decoder]:
        """Spaces again, and none at the beginning."""
        last = [decoders.Strip(content=" ", left=1)] if self.dummy_prefix else []
        return [decoders.Replace(SPACE, " "), decoders.Fuse(), *last]


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message's fields: integers, or bytes of anything else.

    Raises:
        ValueError, IndexError: it is none.
    """
    place = 0
    while place < len(content):
        tag, place = _varint(content, place)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, place = _varint(content, place)
            yield number, value
            continue
        length = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            length, place = _varint(content, place)
        if length is None or place + length > len(content):
            raise ValueError(f"a field of type {wire} at byte {place}")
        yield number, content[place : place + length]
        place += length


def _varint(content: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[place]
        value, shift, place = value | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return value, place


def _nested(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return value
