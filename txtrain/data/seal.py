"""Seals of cache entries: sizes and checksums, by which damage to a file is noticed when the entry is opened.

    seal.json       the size of each file, a checksum of all of it and one of samples
    checked.json    for each boot of a machine: the times of the files when all of them were found whole

A file is read as a whole at the first use after its times have changed or the machine was started; otherwise its size
and samples are compared. A seal is written with the entry, or at the first use of an entry that has none.
"""

import hashlib
import os
import stat
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from txtrain.data.progress import Progress

SEAL, CHECKED = "seal.json", "checked.json"
BLOCK = 1 << 22  # bytes read at a time
SAMPLES, SAMPLE = 16, 4096  # how many samples of how many bytes
LARGEST_RECORD = 64 << 20  # bytes of a JSON file that is read at all
BOOTS = 64  # that are remembered

Times = dict[str, tuple[int, int]]
"""When each file was changed: its content, and anything about it."""

Record = TypeVar("Record", bound=BaseModel)


class Damaged(Exception):
    """A file of an entry is not what was written, in words."""


class SealedFile(BaseModel):
    """The size and checksums of a file."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    size: int
    whole: str
    samples: str


class Seal(BaseModel):
    """`seal.json`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    version: Literal[1] = 1
    files: dict[str, SealedFile]


class Checked(BaseModel):
    """`checked.json`."""

    model_config = ConfigDict(extra="forbid")

    boots: dict[str, Times] = {}


def read_record(path: Path, schema: type[Record]) -> Record:
    """A JSON file of an entry.

    Raises:
        Damaged: it is not there, no file, far too large, or of another form.
    """
    try:
        with open(path, "rb", opener=_open_regular) as file:
            content = file.read(LARGEST_RECORD + 1)
        if len(content) > LARGEST_RECORD:
            raise Damaged(f"{path.name} has more than {LARGEST_RECORD} bytes")
        return schema.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Damaged(f"{path.name}: {place + ': ' if place else ''}{first['msg']}") from None
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{path.name} cannot be read ({reason(error)})") from None


def write_seal(folder: Path) -> None:
    """Seals an entry, and remembers that it is whole."""
    names = [path for path in sorted(folder.rglob("*")) if path.name not in (SEAL, CHECKED) and path.is_file()]
    sealed = {}
    with Progress("checking the cache", sum(path.stat().st_size for path in names)) as progress:
        for path in names:
            size = path.stat().st_size
            sealed[path.relative_to(folder).as_posix()] = SealedFile(
                size=size, whole=_whole(path, progress), samples=_samples(path, size)
            )
    seal = Seal(files=sealed)
    _replace(folder / SEAL, seal.model_dump_json())
    remember(folder, times(folder, seal))


def is_sealed(folder: Path) -> bool:
    return os.path.lexists(folder / SEAL)


def read_seal(folder: Path) -> Seal:
    return read_record(folder / SEAL, Seal)


def times(folder: Path, seal: Seal) -> Times:
    """When the files of an entry changed.

    Raises:
        Damaged: one is not there, or of another size.
    """
    found: Times = {}
    for name, sealed in seal.files.items():
        try:
            state = (folder / name).stat()
        except PermissionError:
            raise
        except (OSError, ValueError) as error:
            raise Damaged(f"{name} cannot be read ({reason(error)})") from None
        if not stat.S_ISREG(state.st_mode):
            raise Damaged(f"{name} is no file")
        if state.st_size != sealed.size:
            raise Damaged(f"{name} has {state.st_size} bytes, and had {sealed.size}")
        found[name] = (state.st_mtime_ns, state.st_ctime_ns)
    return found


def check_files(folder: Path) -> None:
    """Refuses what is no file, which reading could wait for for ever."""
    for path in folder.iterdir():
        if not path.is_file():
            raise Damaged(f"{path.name} is no file")


def is_checked(folder: Path, found: Times) -> bool:
    """Whether the files were found whole since this machine was started, and have not been changed since."""
    try:
        return read_record(folder / CHECKED, Checked).boots.get(boot()) == found
    except (Damaged, OSError):
        return False


def remember(folder: Path, found: Times) -> None:
    """The files are whole now, if that can be written down."""
    try:
        checked = read_record(folder / CHECKED, Checked)
    except (Damaged, OSError):
        checked = Checked()
    others = [(name, files) for name, files in checked.boots.items() if name != boot()]
    checked.boots = dict([*others[1 - BOOTS :], (boot(), found)])
    with suppress(OSError):
        _replace(folder / CHECKED, checked.model_dump_json())


def check_samples(folder: Path, seal: Seal) -> None:
    """Compares samples of each file.

    Raises:
        Damaged: one differs.
    """
    for name, sealed in seal.files.items():
        if _samples(folder / name, sealed.size) != sealed.samples:
            raise Damaged(f"{name} has been changed")


def check_whole(folder: Path, seal: Seal) -> None:
    """Compares all of each file.

    Raises:
        Damaged: one differs.
    """
    with Progress("checking the cache", sum(sealed.size for sealed in seal.files.values())) as progress:
        for name, sealed in seal.files.items():
            if _whole(folder / name, progress) != sealed.whole:
                raise Damaged(f"{name} has been changed")


@cache
def boot() -> str:
    """Another name after each start of a machine, where the system has one; else the machine's."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{uuid.getnode():x}"


def reason(error: BaseException) -> str:
    """An error in a few words."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def _whole(path: Path, progress: Progress) -> str:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb", buffering=0, opener=_open_regular) as file:
            while block := file.read(BLOCK):
                digest.update(block)
                progress.advance(len(block))
    except PermissionError:
        raise
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({reason(error)})") from None
    return digest.hexdigest()


def _samples(path: Path, size: int) -> str:
    """The checksum of blocks at equal distances, the first and the last among them, or of all of a small file."""
    digest = hashlib.blake2b(digest_size=16)
    few = size <= SAMPLES * SAMPLE
    starts = [0] if few else [number * (size - SAMPLE) // (SAMPLES - 1) for number in range(SAMPLES)]
    try:
        with open(path, "rb", opener=_open_regular) as file:
            for start in starts:
                file.seek(start)
                digest.update(file.read(size if few else SAMPLE))
    except PermissionError:
        raise
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({reason(error)})") from None
    return digest.hexdigest()


def _open_regular(path: str, flags: int) -> int:
    """Opens a file, and nothing that could hang."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("no file")
    return descriptor


def _replace(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
