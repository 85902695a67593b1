"""What a checkpoint says of itself, and whether that is so."""

import json
import os
import stat
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from txtrain.errors import UserError
from txtrain.records import ManifestRecord, Unreadable, read_record
from txtrain.saving.parts import Part, sync

MANIFEST = "manifest.json"
FORMAT = 1


def write_manifest(folder: Path, *, step: int, ranks: int, strategy: str, parts: Iterable[Part]) -> None:
    """Written last, so a checkpoint with a manifest is one that was written to its end.

    Args:
        folder: the checkpoint.
        step: optimizer steps that were made.
        ranks, strategy: what wrote it.
        parts: all its files.
    """
    content = {"format": FORMAT, "step": step, "ranks": ranks, "strategy": strategy}
    path = folder / MANIFEST
    path.write_text(json.dumps(content | {"files": [asdict(part) for part in parts]}, indent=1) + "\n")
    sync(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, its files as `Part`s.

    Raises:
        Unreadable: there is none, or it is damaged.
    """
    content = read_record(folder / MANIFEST, ManifestRecord)
    parts = [Part(name=part.name, bytes=part.bytes, sha256=part.sha256) for part in content.files]
    return content.model_dump() | {"files": parts}


def damage(path: Path, *, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, None if nothing.

    Args:
        path: the checkpoint.
        contents: whether to read all files and compare their hashes, not their sizes only.
    """
    try:
        if not path.exists():
            return "it does not exist"
        if not path.is_dir():
            return "it is no folder"
        if not os.path.lexists(path / MANIFEST):
            return f"it has no {MANIFEST}"
        manifest = read_manifest(path)
    except OSError as error:
        return f"{error.strerror}"
    except Unreadable as error:
        return f"{MANIFEST}: {error.reason}"
    if manifest["format"] != FORMAT:
        return f"its format is {manifest['format']}, this version reads {FORMAT}"
    for part in manifest["files"]:
        if found := _damaged(path / part.name, part, contents=contents):
            return f"{part.name} {found}"
    return None


def _damaged(file: Path, part: Part, *, contents: bool) -> str | None:
    try:
        found = file.stat()
        if not stat.S_ISREG(found.st_mode):  # a named pipe would be waited for
            return "is no regular file"
        if (size := found.st_size) != part.bytes:
            return f"has {size} bytes instead of {part.bytes}"
        if contents and Part.of(file) != part:
            return "was altered (SHA-256)"
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return None


def check_checkpoint(path: Path) -> None:
    """Raises a UserError unless `path` is a whole checkpoint."""
    if found := damage(path):
        raise UserError(f"checkpoint {path} cannot be read ({found}): name another run")
