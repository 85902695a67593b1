"""The files of a checkpoint: tensors, whole and by name, in a file for each process, and all else in one more."""

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor

from txtrain.errors import UserError
from txtrain.records import RESTORE, checked
from txtrain.saving.tensors import write_tensors

STATE = "state.pt"
TENSORS = "tensors_*.safetensors"
WEIGHT, MOMENT = "model/", "optimizer/"  # before a weight's name, and before that of a moment of it
AVERAGE = "average"  # the moment that is a weight's average over the training
CHUNK = 2**24
STATES = TypeAdapter(dict[str, Any])


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the manifest says of a file: its name, its size in bytes and its SHA-256."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Part":
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return cls(name=path.name, bytes=path.stat().st_size, sha256=digest.hexdigest())


def share_out(tensors: Iterable[tuple[str, Tensor]], *, rank: int, ranks: int) -> dict[str, Tensor]:
    """Copies on the CPU of those tensors that this process is to write; all processes must go through all of them.

    Each goes to the process that has least so far, so files are of about one size, and so is the memory for the copies.
    """
    loads, mine = [0] * ranks, dict[str, Tensor]()
    for name, tensor in tensors:
        owner = loads.index(min(loads))
        loads[owner] += tensor.nbytes
        if owner == rank:
            mine[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return mine


def content_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of the names, types, shapes and values of tensors."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack_state(state: Mapping[str, Any]) -> bytes:
    """All that is no tensor of the model or the optimizer, as it is now."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def read_state(folder: Path) -> dict[str, Any]:
    """What `pack_state` packed; plain containers and tensors, no code.

    Raises:
        UserError: it is something else.
    """
    path = folder / STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling raises, of a file whose checksum is right
        # Not torch's own words, which advise to load it with whatever code it names.
        raise UserError(f"{path} cannot be read (it is no state of a run, {type(error).__name__}): {RESTORE}") from None
    return checked(path, state, STATES)


def write_part(folder: Path, *, rank: int, tensors: dict[str, Tensor], state: bytes | None) -> list[Part]:
    """Writes a process's files and brings them to the disk.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / TENSORS.replace("*", f"{rank:05d}")
    write_tensors(path, tensors)
    paths = [path]
    if state is not None:
        paths.append(folder / STATE)
        paths[-1].write_bytes(state)
    for written in paths:
        sync(written)
    return [Part.of(written) for written in paths]


class Reader(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, each read when it is asked for.

    Args:
        folders: the checkpoint; after it, where to look for what it lacks.
    """

    def __init__(self, *folders: Path) -> None:
        files = [_opened(path) for folder in folders for path in sorted(folder.glob(TENSORS))]
        self._places = {name: (file, name) for file in reversed(files) for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        file, name_in_file = self._places[name]
        return file.get_tensor(name_in_file)

    def __contains__(self, name: object) -> bool:  # a Mapping's own would read the tensor
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def names(self, prefix: str = "") -> Iterator[str]:
        return (name for name in self if name.startswith(prefix))

    def learned(self, name: str) -> Tensor:
        """What training made of a weight: its average, if there is one."""
        average = f"{MOMENT}{name}/{AVERAGE}"
        return self[average if average in self else WEIGHT + name]

    def shape(self, name: str) -> tuple[int, ...]:
        file, name_in_file = self._places[name]
        return tuple(file.get_slice(name_in_file).get_shape())

    def has_16_bits(self, name: str) -> bool:
        file, name_in_file = self._places[name]
        return file.get_slice(name_in_file).get_dtype() in ("BF16", "F16")

    def moments(self) -> "dict[str, Reader]":
        """Those of the optimizer, by the weight's name and then by key; none for a weight that has none."""
        found: dict[str, Reader] = defaultdict(Reader)
        for name in self.names(MOMENT):
            weight, _, key = name.removeprefix(MOMENT).rpartition("/")
            found[weight]._places[key] = self._places[name]
        return found


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}): {RESTORE}") from None


def check_complete(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises an OSError unless the folder has each of these tensors whole: a shard or an empty one is a lost weight."""
    reader = Reader(folder)
    for name, shape in shapes.items():
        if name not in reader:
            raise OSError(f"{name} was not written")
        if reader.shape(name) != shape:
            raise OSError(f"{name} was written as {reader.shape(name)} instead of {shape}")


def sync(path: Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
