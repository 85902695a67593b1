"""Reads what W&B writes offline: a header of 7 bytes, then LevelDB's log format with one protocol buffer a record."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as messages

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """One segment of a run."""

    id: str = ""
    name: str = ""
    project: str = ""
    group: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None


def read(path: Path, *, timeout: float = 20.0) -> OfflineRun:
    """The segment, once it was written to its end, which wandb's own process may do a little later."""
    deadline = time.monotonic() + timeout
    while (run := _read(path)).exit_code is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return run


def _read(path: Path) -> OfflineRun:
    run = OfflineRun()
    for content in _records(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(content)
        if record.HasField("history"):
            run.history.append({_key(item): json.loads(item.value_json) for item in record.history.item})
        elif record.HasField("run"):
            start = record.run
            run.id, run.name, run.project, run.group = start.run_id, start.display_name, start.project, start.run_group
            run.config |= {_key(item): json.loads(item.value_json) for item in start.config.update}
        elif record.HasField("exit"):
            run.exit_code = record.exit.exit_code
    return run


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        _, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        if left < HEADER or kind == 0:
            position += left
            continue
        parts += data[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (FULL, LAST):
            yield parts
            parts = b""
