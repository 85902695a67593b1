"""The user's own images: a folder with a folder for each class."""

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import RootModel

from txtrain.data import cache
from txtrain.data.files import state, walk
from txtrain.data.images import Entry, ImageData
from txtrain.data.pixels import FOREIGN, TRANSPARENT, read_image, why_unreadable
from txtrain.data.progress import Progress
from txtrain.data.seal import read_record
from txtrain.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

BAD = "unreadable.json"
RULES = 3  # raise it when other files than before can be read


class ImageFolder(ImageData):
    """Images of any format that Pillow reads, in a folder for each class, which has the class's name.

    Every file is read once before training, so that what cannot be read is known; what came of it is kept in the cache.

    Args:
        path: the folder of folders.
        validation_path: one to validate on, with the same classes. Default: a part of `path`.
        on_bad: whether a file that cannot be read is left out and counted, or ends it all.
        base: as in `ImageData`.
    """

    def __init__(
        self, *, path: str, validation_path: str | None = None, on_bad: Literal["skip", "stop"] = "skip", **base: Any
    ) -> None:
        super().__init__(**base)
        self.path, self.on_bad = Path(path).expanduser(), on_bad
        self.validation_path = Path(validation_path).expanduser() if validation_path else None

    def identity(self) -> Any:
        return {"files": state([Path(entry.place) for entry in self._found]), "path": str(self.path.absolute())}

    @cached_property
    def _found(self) -> list[Entry]:
        """All files that may be images."""
        if self.validation_path is None:
            return list(_entries(self.path, "data.path"))
        apart = _entries(self.validation_path, "data.validation_path", held_out=True)
        return [*_entries(self.path, "data.path", held_out=False), *apart]

    @cached_property
    def bad(self) -> dict[str, str]:
        """Files that cannot be read, and why."""
        alpha = self.pixels.channels in TRANSPARENT
        name = cache.fingerprint(images=self.identity(), rules=RULES, **({"alpha": True} if alpha else {}))
        folder = cache.entry(self.cache_dir, name, self._read_all, read_bad)
        return read_bad(folder)

    def _read_all(self, folder: Path) -> None:
        with ThreadPoolExecutor(max_workers=min(16, (os.cpu_count() or 1) + 1)) as pool:
            reasons = pool.map(self._why, [entry.place for entry in self._found])
            found = {}
            with Progress("reading images", len(self._found), unit="images") as progress:
                for entry, reason in zip(self._found, reasons, strict=True):
                    progress.advance()
                    if reason:
                        found[entry.place] = reason
        (folder / BAD).write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")

    def _why(self, place: str) -> str | None:
        return why_unreadable(place, self.pixels.channels)

    def entries(self) -> list[Entry]:
        bad = self.bad
        if bad and self.on_bad == "stop":
            file, reason = next(iter(bad.items()))
            raise UserError(f"{file} cannot be read ({reason}): repair or remove it, or set data.on_bad=skip")
        whole = [entry for entry in self._found if entry.place not in bad]
        for label in {entry.label for entry in self._found} - {entry.label for entry in whole}:
            file, reason = next((entry.place, bad[entry.place]) for entry in self._found if entry.label == label)
            raise UserError(f"no image of the class {label} can be read: {file} cannot ({reason})")
        return whole

    def image(self, entry: Entry) -> "Image":
        try:
            return read_image(entry.place)
        except (OSError, SyntaxError, ValueError):
            if reason := self._why(entry.place):
                raise UserError(f"{entry.place} cannot be read any more ({reason}): restore it") from None
            raise

    def left_out(self) -> dict[str, str]:
        bad = self.bad
        if not bad:
            return {}
        first = ", ".join(f"{file} ({reason})" for file, reason in list(bad.items())[:3])
        return {"unreadable": f"{len(bad)} files are left out: {first}{', ...' if len(bad) > 3 else ''}"}

    def _named(self) -> str:
        return f"data.path={self.path}"


class Unreadable(RootModel[dict[str, str]]):
    """`unreadable.json`: files, and why each cannot be read."""


def read_bad(folder: Path) -> dict[str, str]:
    return read_record(folder / BAD, Unreadable).root


def _entries(path: Path, key: str, held_out: bool | None = None) -> Iterable[Entry]:
    """The images in a folder of folders, in order."""
    from PIL.Image import OPEN, registered_extensions

    if not path.is_dir():
        got = "is a file" if path.exists() else f"does not exist (from {Path.cwd()})"
        raise UserError(f"{key}={path} {got}: give a folder that has a folder of images for each class")
    inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    known = {extension for extension, kind in registered_extensions().items() if kind in OPEN}
    loose = next((file for file in inside if file.is_file() and file.suffix.lower() in known), None)
    if loose is not None:
        raise UserError(f"{loose} has no label: put it into a folder of {path} that is named after its class")
    folders = [entry for entry in inside if entry.is_dir()]
    if not folders:
        raise UserError(f"{key}={path} has no folders: make one for each class, with its images in it")
    for folder in folders:
        files = [file for file in walk(folder) if file.suffix.lower() in known | FOREIGN]
        if not files:
            raise UserError(f"the class {folder} is empty: put images into it, or remove it")
        for file in files:
            yield Entry(place=str(file), label=folder.name, group=file.relative_to(path).as_posix(), held_out=held_out)
