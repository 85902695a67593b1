"""The Python standard library's own source: real text that every machine has."""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from txtrain.data import files
from txtrain.data.language import LanguageData
from txtrain.data.split import Document
from txtrain.errors import UserError

TESTS = {"test", "tests", "idle_test"}
INSTALLED = {"site-packages", "dist-packages"}
TABLES = {"encodings", "pydoc_data"}  # code pages and help texts, a sixth of all bytes and hardly code
LEFT_OUT = TESTS | INSTALLED | TABLES

# What Python 3.11 to 3.13 have on every system. Distributions leave out tkinter, idlelib or ensurepip, and write or
# patch _sysconfigdata_*, sysconfig and site. A list never changes: another one gets another name.
COMMON = """
    __future__ _collections_abc _compat_pickle _compression _markupbase _py_abc _pydecimal _pyio _sitebuiltins _strptime
    _threading_local _weakrefset abc argparse ast asyncio base64 bdb bisect bz2 cProfile calendar cmd code codecs codeop
    collections colorsys compileall concurrent configparser contextlib contextvars copy copyreg csv ctypes curses
    dataclasses datetime dbm decimal difflib dis doctest email enum filecmp fileinput fnmatch fractions ftplib functools
    genericpath getopt getpass gettext glob graphlib gzip hashlib heapq hmac html http imaplib importlib inspect io
    ipaddress json keyword linecache locale logging lzma mailbox mimetypes modulefinder multiprocessing netrc ntpath
    nturl2path numbers opcode operator optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib
    posixpath pprint profile pstats pty py_compile pyclbr pydoc queue quopri random re reprlib rlcompleter runpy sched
    secrets selectors shelve shlex shutil signal smtplib socket socketserver sqlite3 sre_compile sre_constants sre_parse
    ssl stat statistics string stringprep struct subprocess symtable tabnanny tarfile tempfile textwrap threading timeit
    token tokenize tomllib trace traceback tracemalloc tty types typing unittest urllib uuid venv warnings wave weakref
    webbrowser wsgiref xml xmlrpc zipapp zipfile zipimport zoneinfo
"""
LISTS: dict[str, Sequence[str]] = {"common": COMMON.split()}


class StandardLibrary(LanguageData):
    """The `.py` files of the running Python's standard library, but for tests and tables; split by file.

    Args:
        modules: a named list of modules, the same on every machine. None, as in configs that do not say: all that there
            are, some of which each machine generates for itself.
        base: as in `LanguageData`.
    """

    def __init__(self, *, modules: str | None = None, **base: Any) -> None:
        super().__init__(**base)
        self.modules = check_list(modules)

    def identity(self) -> Any:
        return library_identity(self.modules)

    def documents(self) -> Iterator[Document]:
        for file in library_files(self.modules):
            yield name_in_library(file), read_source(file)

    def details(self) -> dict[str, str]:
        return super().details() | library_details(self.modules)


def check_list(name: str | None) -> str | None:
    """The name of a list of modules, if there is one of that name."""
    if name is not None and name not in LISTS:
        raise UserError(f"data.modules={name} is no list of modules: set data.modules={' or '.join(LISTS)}")
    return name


def library_files(modules: str | None) -> list[Path]:
    """The `.py` files of a list of modules, or without one of the whole standard library; sorted."""
    if modules is None:
        return sorted(_inside(_root()))
    found: list[Path] = []
    for module in LISTS[modules]:
        file, package = _root() / f"{module}.py", _root() / module
        found += [file] if file.is_file() else _inside(package)
        if not (file.is_file() or (package / "__init__.py").is_file()):
            raise UserError(
                f"the standard library in {_root()} has no {module}: install all of Python's library, or take what "
                "there is with data.modules=null"
            )
    return sorted(found)


def library_identity(modules: str | None) -> Any:
    """What tells the files of a list from any other: their names and all that is in them."""
    return files.state(library_files(None)) if modules is None else {"modules": modules, "sha256": _digest(modules)}


def library_details(modules: str | None) -> dict[str, str]:
    """The files in words, with a hash that is the same where the losses can be compared."""
    if modules is None:
        return {"library": f"all of Python {platform.python_version()}'s files here, which differ between machines"}
    told = f"data.modules={modules}: {len(library_files(modules))} files of Python {platform.python_version()}"
    return {"library": f"{told}, sha256 {_digest(modules)[:12]}"}


def name_in_library(file: Path) -> str:
    """Where a file is in the library, such as `email/message.py`."""
    return file.relative_to(_root()).as_posix()


def read_source(file: Path) -> str:
    return file.read_bytes().decode(errors="replace")


@cache
def _digest(modules: str) -> str:
    found = hashlib.sha256()
    for file in library_files(modules):
        content = file.read_bytes()
        found.update(f"{name_in_library(file)} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _inside(root: Path) -> list[Path]:
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in LEFT_OUT]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return found


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])
