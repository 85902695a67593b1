"""The two splits of a text as streams of tokens: `train.bin`, `validation.bin`, and their counts in `tokens.json`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from txtrain.data.cache import token_type
from txtrain.data.cutting import Piece, pieces
from txtrain.data.long_text import Text
from txtrain.data.progress import Progress
from txtrain.data.seal import read_record
from txtrain.data.tokenizer import Tokenizer

CHUNK = 2_000_000  # characters encoded at a time, on all cores
COUNTS = "tokens.json"


class Counts(BaseModel):
    """`tokens.json`; `tokens` are those that are predicted: the first end of text and what opens documents are not."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    dtype: Literal["uint16", "uint32"]
    train_tokens: NonNegativeInt
    train_bytes: NonNegativeInt
    validation_tokens: NonNegativeInt
    validation_bytes: NonNegativeInt


def read_counts(folder: Path) -> Counts:
    return read_record(folder / COUNTS, Counts)


def write(
    folder: Path,
    tokenizer: Tokenizer,
    texts: Iterable[tuple[Text, bool]],
    opening: Sequence[int] = (),
    *,
    characters: int | None = None,
) -> None:
    """Fills an entry of the cache.

    Args:
        folder: of the entry.
        tokenizer: of the texts.
        texts: each with whether it is for validation.
        opening: tokens that documents begin with.
        characters: how many there are in all, where that is known.
    """
    dtype = token_type(tokenizer)
    with (
        Progress("tokenizing", characters, unit="characters") as progress,
        _Stream(folder / "train.bin", tokenizer, dtype, opening) as train,
        _Stream(folder / "validation.bin", tokenizer, dtype, opening) as validation,
    ):
        chunk: list[tuple[Piece, _Stream]] = []
        length = 0
        for text, held_out in texts:
            for piece in pieces(text, tokenizer):
                chunk.append((piece, validation if held_out else train))
                length += len(piece.text)
                if length >= CHUNK:
                    _encode(chunk, tokenizer)
                    progress.advance(length)
                    chunk, length = [], 0
        _encode(chunk, tokenizer)
    counts = Counts(
        dtype=dtype,
        train_tokens=train.tokens,
        train_bytes=train.size,
        validation_tokens=validation.tokens,
        validation_bytes=validation.size,
    )
    tokenizer.save(folder / "tokenizer.json")
    (folder / COUNTS).write_text(json.dumps(counts.model_dump()))


def _encode(chunk: list[tuple[Piece, "_Stream"]], tokenizer: Tokenizer) -> None:
    encoded = tokenizer.id_arrays([piece.text for piece, _ in chunk])
    for ids, (piece, stream) in zip(encoded, chunk, strict=True):
        stream.write(ids, piece)


class _Stream:
    """The file of a split."""

    def __init__(self, path: Path, tokenizer: Tokenizer, dtype: str, opening: Sequence[int]) -> None:
        self.tokens = self.size = 0
        self._end, self._dtype = tokenizer.end_of_text, dtype
        self._before = [token for token in opening if token != self._end]  # the end of one document opens the next
        self._fresh = True
        self._file = path.open("wb")
        self._file.write(np.array([self._end], dtype=dtype).tobytes())

    def write(self, ids: NDArray[np.integer[Any]], piece: Piece) -> None:
        before, after = self._before if self._fresh else [], [self._end] if piece.last else []
        for tokens in (before, ids, after):
            self._file.write(np.asarray(tokens, dtype=self._dtype).tobytes())
        self.tokens += len(ids) + len(after)
        self.size, self._fresh = self.size + piece.size, piece.last

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
