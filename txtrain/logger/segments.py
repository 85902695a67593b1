"""Files that W&B writes offline: a header of 7 bytes, then LevelDB's log format, one protocol buffer a record.

https://github.com/google/leveldb/blob/main/doc/log_format.md; a record may be spread over chunks, and no chunk crosses
the border of a block of 32 KiB.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from txtrain.saving import PARTIAL

BLOCK, HEADER = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def cut_back(path: Path, step: int) -> int:
    """Removes what was logged after `step`, and a record that was not written to its end; returns the last step left.

    From the first row of a later step on all goes, whatever it is: a summary, samples and the end of the run belong to
    rows that are logged again. The file is replaced, since a W&B process that outlived its run may still write to it.
    One that is left with nothing goes: W&B writes 32 KiB at a time, and `wandb sync` sends none if it cannot read one.
    """
    data = path.read_bytes()
    end, last = HEADER, 0
    for content, after in records(data):
        found = history_step(content)
        if found is not None and found > step:
            break
        end, last = after, last if found is None else found
    if end == HEADER:
        path.unlink()
    elif end < len(data):
        beside = path.with_name(path.name + PARTIAL)
        beside.write_bytes(data[:end])
        os.replace(beside, path)
    return last


def records(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Each whole record and the position after it."""
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER:
            position += left
            continue
        checksum, length, kind = struct.unpack("<IHB", data[position : position + HEADER])
        end = position + HEADER + length
        if end > len(data) or zlib.crc32(data[position + HEADER - 1 : end]) != checksum:
            return
        parts = data[position + HEADER : end] if kind in (FULL, FIRST) else parts + data[position + HEADER : end]
        position = end
        if kind in (FULL, LAST):
            yield parts, position


def history_step(content: bytes) -> int | None:
    """The step of a record if it is a row of metrics."""
    from wandb.proto import wandb_internal_pb2 as messages

    record = messages.Record()
    record.ParseFromString(content)
    if not record.HasField("history"):
        return None
    items = record.history.item
    return next((json.loads(item.value_json) for item in items if "_step" in (item.key, *item.nested_key)), None)
