"""The token cache: text is tokenized once, and every rank, job and later run maps the same file into memory.

An entry is a folder named by a fingerprint of the data, the tokenizer and the options:

    tokenizer.json      the tokenizer, trained if it needed to be
    train.bin           tokens as uint16 or uint32: <end> document <end> document <end>, and before each document
                        what opens it, such as <s>, if the tokenizer has that
    validation.bin
    tokens.json         counts
    seal.json           sizes and checksums of these files

It is written beside its place and renamed, under a lock, so that an entry is either whole or not there; damage that
comes later is noticed when it is opened.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from txtrain.data import seal
from txtrain.data.progress import Progress
from txtrain.data.seal import Damaged, reason
from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError

VERSION = 1  # raise it when the same fingerprint would give other files
BLOCK = 1 << 20  # tokens that are checked at a time

log = logging.getLogger(__name__)


def fingerprint(**parts: Any) -> str:
    """A name for whatever these parts describe."""
    text = json.dumps({"version": VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def entry(
    cache_dir: Path, name: str, build: Callable[[Path], None], check: Callable[[Path], object] | None = None
) -> Path:
    """The folder of an entry, built by exactly one of the processes that ask for it at the same time.

    One that is there is used if it is as it was written; a damaged one is built again, with a line that says so.

    Args:
        cache_dir: of all entries.
        name: of this one, a fingerprint.
        build: fills a folder.
        check: reads a folder and raises any error where something in it cannot be.
    """
    folder = cache_dir / name
    try:
        if _is_known(folder):
            return folder
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _locked(cache_dir / f"{name}.lock"):
            if not os.path.lexists(folder):
                _build(folder, build)
            elif not _is_known(folder):
                try:
                    _verify(folder, check)
                except Damaged as damage:
                    log.warning("the cache's entry %s is damaged (%s): it is made again", folder, damage)
                    _build(folder, build)
    except OSError as error:
        if folder.is_dir():
            _read_only(folder, check, error)
        else:
            raise UserError(
                f"data.cache_dir={cache_dir} cannot be written ({reason(error)}): "
                "set data.cache_dir=FOLDER or the environment variable TXTRAIN_CACHE to one that can"
            ) from None
    return folder


def verify(folder: Path, check: Callable[[Path], object]) -> None:
    """Refuses an entry that cannot be made again, where it is damaged; then `check` reads it."""
    try:
        _compare(folder, check)
    except (Damaged, OSError) as damage:
        raise UserError(f"the cache's entry {folder} is damaged ({damage}): restore it, or remove it") from None


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    """Builds beside the place and takes it, whatever was there; we hold the lock."""
    for left_behind in folder.parent.glob(f"{folder.name}.partial*"):  # by a writer that died
        _discard(left_behind)
    # Not by mkdtemp, whose folders nobody else may read.
    partial, damaged = (folder.with_name(f"{folder.name}.partial{token_hex(4)}") for _ in range(2))
    partial.mkdir()
    try:
        build(partial)
        seal.write_seal(partial)
        if os.path.lexists(folder):
            folder.rename(damaged)
        partial.rename(folder)
    finally:
        _discard(partial)
        _discard(damaged)


def _discard(path: Path) -> None:
    """Removes a folder, or whatever stands there; it has a name of ours that nobody uses."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_known(folder: Path) -> bool:
    """Whether the entry is there and whole: it was checked since the machine started, and shows no change."""
    try:
        sealed = seal.read_seal(folder)
        if not seal.is_checked(folder, seal.times(folder, sealed)):
            return False
        seal.check_samples(folder, sealed)
    except (Damaged, OSError):
        return False
    return True


def _verify(folder: Path, check: Callable[[Path], object] | None) -> None:
    """Reads all of an entry, and remembers that it is whole; we hold the lock."""
    _compare(folder, check)
    try:
        if seal.is_sealed(folder):
            seal.remember(folder, seal.times(folder, seal.read_seal(folder)))
        else:
            seal.write_seal(folder)
    except OSError as error:  # it is whole all the same
        log.debug("%s cannot be sealed: %s", folder, error)


def _compare(folder: Path, check: Callable[[Path], object] | None, *, whole: bool = True) -> None:
    """Raises `Damaged` where an entry is not what was written, or cannot be read by its reader."""
    if not folder.is_dir():
        raise Damaged("no folder")
    if seal.is_sealed(folder):
        sealed = seal.read_seal(folder)
        seal.times(folder, sealed)
        (seal.check_whole if whole else seal.check_samples)(folder, sealed)
    else:
        seal.check_files(folder)
    if check is None:
        return
    try:
        check(folder)
    except PermissionError:
        raise
    except Exception as error:  # whatever the libraries raise that read it
        known = isinstance(error, Damaged | UserError)
        raise Damaged(f"{'' if known else type(error).__name__ + ': '}{reason(error)}") from None


def _read_only(folder: Path, check: Callable[[Path], object] | None, unwritable: OSError) -> None:
    """Uses an entry of a cache that cannot be written, if it is whole. One process of a machine reads all of it."""
    try:
        _compare(folder, check, whole=os.environ.get("LOCAL_RANK", "0") == "0")
    except OSError as error:
        raise UserError(
            f"{error.filename or folder} cannot be read ({reason(error)}): set data.cache_dir=FOLDER to make the data "
            "there"
        ) from None
    except Damaged as damage:
        raise UserError(
            f"the cache's entry {folder} is damaged ({damage}) and cannot be made again there ({reason(unwritable)}): "
            "restore it, or set data.cache_dir=FOLDER"
        ) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Waits for whoever makes or checks the same entry, not in silence."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with Progress("waiting for the process that prepares the same data"):
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def token_type(tokenizer: Tokenizer) -> Literal["uint16", "uint32"]:
    """What a token takes on the disk."""
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def check_tokens(path: Path, dtype: Any, tokenizer: Tokenizer, *, tokens: int, field: str | None = None) -> None:
    """Reads a file of tokens.

    Args:
        path: of the file.
        dtype: of an id, or of a record with it.
        tokenizer: that knows which ids there are.
        tokens: how many there are in the file.
        field: of the record that holds the id.

    Raises:
        Damaged: there are more or fewer, or one is no id.
    """
    kind, bound, size = np.dtype(dtype), tokenizer.id_bound, path.stat().st_size
    if size != tokens * kind.itemsize:
        raise Damaged(f"{path.name} has {size} bytes, not {tokens} tokens of {kind.itemsize}")
    with Progress("checking tokens", size) as progress, path.open("rb") as file:
        while len(block := np.fromfile(file, dtype=kind, count=BLOCK)):
            ids: NDArray[Any] = block if field is None else block[field]
            if (most := int(ids.max())) >= bound:
                raise Damaged(f"{path.name} has the token {most}, and there are {bound}")
            progress.advance(block.nbytes)


def check_numbers(name: str, numbers: NDArray[Any], *, count: int, bound: int) -> None:
    """Refuses another count of numbers, and a number that is not in [0, bound)."""
    if numbers.shape != (count,):
        raise Damaged(f"{name} has the shape {numbers.shape}, not {(count,)}")
    if count and not (int(numbers.min()) >= 0 and int(numbers.max()) < bound):
        raise Damaged(f"{name} has numbers from {numbers.min()} to {numbers.max()}, and there are {bound}")


def check_places(path: Path, count: int) -> None:
    """Refuses a file that does not have a line for each sample."""
    with path.open("rb") as file:
        lines = sum(1 for _ in file)
    if lines != count:
        raise Damaged(f"{path.name} has {lines} lines, not {count}")


def check_ends(name: str, ends: NDArray[Any], *, last: int) -> None:
    """Refuses places in a file that go back, or beyond its end."""
    if not len(ends) or ends[0] != 0 or ends[-1] != last or (np.diff(ends) < 0).any():
        raise Damaged(f"{name} names places that are not in the file of {last} tokens")
