"""The Python standard library's own source: real text that every machine has."""

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from txtrain.data import files
from txtrain.data.language import LanguageData
from txtrain.data.split import Document

TESTS = {"test", "tests", "idle_test"}
INSTALLED = {"site-packages", "dist-packages"}
TABLES = {"encodings", "pydoc_data"}  # code pages and help texts, a sixth of all bytes and hardly code
LEFT_OUT = TESTS | INSTALLED | TABLES


class StandardLibrary(LanguageData):
    """The `.py` files of the running Python's standard library, but for tests, tables and installed packages; split by
    file."""

    def identity(self) -> Any:
        return files.state(self._files())

    def documents(self) -> Iterator[Document]:
        root = self._root
        for file in self._files():
            yield file.relative_to(root).as_posix(), file.read_bytes().decode(errors="replace")

    @property
    def _root(self) -> Path:
        return Path(sysconfig.get_paths()["stdlib"])

    def _files(self) -> list[Path]:
        found = []
        for folder, subfolders, names in os.walk(self._root):
            subfolders[:] = [name for name in subfolders if name not in LEFT_OUT]
            found += [Path(folder, name) for name in names if name.endswith(".py")]
        return sorted(found)
