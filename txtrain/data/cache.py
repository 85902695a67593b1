"""The token cache: text is tokenized once, and every rank, job and later run maps the same file into memory.

An entry is a folder named by a fingerprint of the data, the tokenizer and the options:

    tokenizer.json      the tokenizer, trained if it needed to be
    train.bin           tokens as uint16 or uint32: <end> document <end> document <end>, and before each document
                        what opens it, such as <s>, if the tokenizer has that
    validation.bin
    tokens.json         counts

It is written beside its place and renamed, under a lock, so that an entry is either whole or not there.
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError

VERSION = 1  # raise it when the same fingerprint would give other files
CHUNK = 4_000_000  # characters encoded at a time, on all cores
PIECE = 500_000  # longer documents are cut at line ends

_LINE_END = re.compile(r"(?<=\S\n)(?=\S)")


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What an entry holds; `tokens` are those that are predicted: the first end of text and what opens documents are
    not."""

    dtype: str
    train_tokens: int
    train_bytes: int
    validation_tokens: int
    validation_bytes: int


def fingerprint(**parts: Any) -> str:
    """A name for whatever these parts describe."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def entry(cache_dir: Path, name: str, build: Callable[[Path], None]) -> Path:
    """The folder of an entry, built by exactly one of the processes that ask for it at the same time."""
    folder = cache_dir / name
    if folder.is_dir():
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{name}.lock"):
            if folder.is_dir():
                return folder
            for left_behind in cache_dir.glob(f"{name}.partial*"):  # by a writer that died: we hold the lock
                shutil.rmtree(left_behind)
            partial = Path(tempfile.mkdtemp(prefix=f"{name}.partial", dir=cache_dir))
            try:
                build(partial)
                partial.rename(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"data.cache_dir={cache_dir} cannot be written ({error.strerror or error}): "
            "set data.cache_dir=FOLDER or the environment variable TXTRAIN_CACHE to one that can"
        ) from None
    return folder


def write(
    folder: Path,
    tokenizer: Tokenizer,
    train: Iterable[str],
    validation: Iterable[str],
    opening: Sequence[int] = (),
) -> None:
    """Fill an entry, of documents that begin with these tokens."""
    dtype = token_type(tokenizer)
    train_tokens, train_bytes = _write_split(folder / "train.bin", tokenizer, dtype, train, opening)
    validation_tokens, validation_bytes = _write_split(folder / "validation.bin", tokenizer, dtype, validation, opening)
    counts = Counts(
        dtype=dtype,
        train_tokens=train_tokens,
        train_bytes=train_bytes,
        validation_tokens=validation_tokens,
        validation_bytes=validation_bytes,
    )
    tokenizer.save(folder / "tokenizer.json")
    (folder / "tokens.json").write_text(json.dumps(asdict(counts)))


def token_type(tokenizer: Tokenizer) -> str:
    """What a token takes on the disk."""
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def read_counts(folder: Path) -> Counts:
    return Counts(**json.loads((folder / "tokens.json").read_text()))


def _write_split(
    path: Path, tokenizer: Tokenizer, dtype: str, texts: Iterable[str], opening: Sequence[int]
) -> tuple[int, int]:
    """Write the stream of a split; its tokens and the bytes of its text."""
    end = tokenizer.end_of_text
    before = [token for token in opening if token != end]  # the end of one document opens the next
    tokens, size, fresh = 0, 0, True
    with path.open("wb") as file:
        np.array([end], dtype=dtype).tofile(file)
        for chunk in _chunks(texts):
            pieces = [(piece, last) for text in chunk for piece, last in _pieces(text)]
            encoded = tokenizer.encode_batch([piece for piece, _ in pieces])
            for ids, (piece, last) in zip(encoded, pieces, strict=True):
                ids = [*ids, end] if last else ids
                np.array([*before, *ids] if fresh else ids, dtype=dtype).tofile(file)
                tokens, fresh = tokens + len(ids), last
                size += len(piece.encode())
    return tokens, size


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts, of at least `CHUNK` characters but for the last."""
    chunk: list[str] = []
    length = 0
    for text in texts:
        chunk.append(text)
        length += len(text)
        if length >= CHUNK:
            yield chunk
            chunk, length = [], 0
    if chunk:
        yield chunk


def _pieces(text: str) -> Iterator[tuple[str, bool]]:
    """A text cut into pieces, each with whether it is the last.

    A cut lies after a lone line end, where byte-level tokenizers begin a new word anyway: the tokens stay the same.
    """
    start = 0
    while (cut := _LINE_END.search(text, start + PIECE)) is not None:
        yield text[start : cut.start()], False
        start = cut.start()
    yield text[start:], True
