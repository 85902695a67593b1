"""Functions of the Python standard library, labelled with the package that they are from."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

from txtrain.data.stdlib import (
    check_list,
    library_details,
    library_files,
    library_identity,
    name_in_library,
    read_source,
)
from txtrain.data.texts import Example, LabelledText

LINES = 4  # of a function, at least
FILES, FUNCTIONS = 6, 100  # of a package, at least


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function or method, as it stands in a file of the library."""

    node: ast.FunctionDef | ast.AsyncFunctionDef
    source: str
    file: str

    @property
    def place(self) -> str:
        return f"{self.file} line {self.node.lineno}"


def library_functions(modules: str | None) -> Iterator[Function]:
    """Functions and methods of a list of modules, file by file; not those within others, nor short ones."""
    for file in library_files(modules):
        name, text = name_in_library(file), read_source(file)
        try:
            tree = ast.parse(text)
        except SyntaxError:  # a template, or a file that shows what lib2to3 does
            continue
        lines = text.splitlines(keepends=True)
        for node in _functions(tree):
            if node.end_lineno is not None and node.end_lineno - node.lineno + 1 >= LINES:
                source = dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
                yield Function(node=node, source=source, file=name)


def _functions(node: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child)


class PackageOfFunction(LabelledText):
    """Which package of the standard library a function is from; split by file, so that no file is on both sides.

    Packages with many functions in many files are the labels: six of `modules=common`, some ten of all files.

    Args:
        modules: as in `StandardLibrary`.
        base: as in `LabelledText`.
    """

    def __init__(self, *, modules: str | None = None, **base: Any) -> None:
        super().__init__(**base)
        self.modules = check_list(modules)

    def identity(self) -> Any:
        return library_identity(self.modules)

    def details(self) -> dict[str, str]:
        return super().details() | library_details(self.modules)

    def examples(self) -> Iterator[Example]:
        found: dict[str, list[Function]] = defaultdict(list)
        for function in library_functions(self.modules):
            package, _, rest = function.file.partition("/")
            if rest:
                found[package].append(function)
        seen: set[str] = set()
        for package, functions in found.items():
            if len({function.file for function in functions}) < FILES or len(functions) < FUNCTIONS:
                continue
            for function in functions:
                if function.source not in seen:  # a copy in another file would be on both sides
                    seen.add(function.source)
                    yield Example(text=function.source, label=package, group=function.file, place=function.place)

    def _named(self) -> str:
        return "the standard library"
