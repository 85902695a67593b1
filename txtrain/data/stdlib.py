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
        return files.state(library_files())

    def documents(self) -> Iterator[Document]:
        for file in library_files():
            yield name_in_library(file), read_source(file)


def library_files() -> list[Path]:
    """The `.py` files of the standard library, sorted."""
    found = []
    for folder, subfolders, names in os.walk(_root()):
        subfolders[:] = [name for name in subfolders if name not in LEFT_OUT]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def name_in_library(file: Path) -> str:
    """Where a file is in the library, such as `email/message.py`."""
    return file.relative_to(_root()).as_posix()


def read_source(file: Path) -> str:
    return file.read_bytes().decode(errors="replace")


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])
