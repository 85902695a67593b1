"""What a checkpoint says of itself, and whether that is so."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from txtrain.errors import UserError
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
        OSError, ValueError: there is none, or it is damaged.
    """
    content = json.loads((folder / MANIFEST).read_text())
    try:
        return content | {"files": [Part(**part) for part in content["files"]]}
    except (KeyError, TypeError) as error:
        raise ValueError(f"no manifest of a checkpoint: {error}") from error


def damage(path: Path, *, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, None if nothing.

    Args:
        path: the checkpoint.
        contents: whether to read all files and compare their hashes, not their sizes only.
    """
    if not path.exists():
        return "it does not exist"
    if not path.is_dir():
        return "it is no folder"
    try:
        manifest = read_manifest(path)
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    if manifest["format"] != FORMAT:
        return f"its format is {manifest['format']}, this version reads {FORMAT}"
    for part in manifest["files"]:
        if found := _damaged(path / part.name, part, contents=contents):
            return f"{part.name} {found}"
    return None


def _damaged(file: Path, part: Part, *, contents: bool) -> str | None:
    try:
        size = file.stat().st_size
        if size != part.bytes:
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
