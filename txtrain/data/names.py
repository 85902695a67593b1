"""Names in functions of the Python standard library, tagged with what they stand for."""

import ast
import builtins
import io
import sys
import tokenize
from collections.abc import Iterator
from typing import Any

from txtrain.data.functions import Function, library_functions
from txtrain.data.stdlib import check_list, library_details, library_identity
from txtrain.data.tagged import Sentence, TaggedText

OUTSIDE = "O"
BUILTINS = frozenset(dir(builtins))
CHARACTERS = 2000  # of a function, at most
Place = tuple[int, int]  # line from 1, and byte in it from 0


class NamesInFunctions(TaggedText):
    """What each name in a function of the standard library stands for; split by file.

    Entities, as IOB2 tags: PARAMETER, LOCAL (bound in the function), GLOBAL (bound outside), BUILTIN, ATTRIBUTE (what
    follows dots, a chain of them as one), METHOD (an attribute that is called), KEYWORD (of an argument), and FUNCTION
    (the name that is defined). Only reading the whole function tells a parameter, a local and a global name apart.

    Args:
        modules: as in `StandardLibrary`.
        base: as in `TaggedText`.
    """

    def __init__(self, *, modules: str | None = None, **base: Any) -> None:
        super().__init__(**base)
        self.modules = check_list(modules)

    def identity(self) -> Any:
        return library_identity(self.modules)

    def details(self) -> dict[str, str]:
        return super().details() | library_details(self.modules)

    def sentences(self) -> Iterator[Sentence]:
        for function in library_functions(self.modules):
            found = tag_function(function) if len(function.source) <= CHARACTERS else None
            if found is not None:
                yield found

    def _named(self) -> str:
        return "the standard library"


def tag_function(function: Function) -> Sentence | None:
    """The function's lexical tokens, each with the white space before it, and their tags, without its docstring.

    None if it does not stand alone.
    """
    try:
        node = ast.parse(function.source).body[0]
        tokens = list(tokenize.generate_tokens(io.StringIO(function.source).readline))
    except (SyntaxError, tokenize.TokenError):  # a text of several lines was dedented
        return None
    kinds, documentation = Roles(node).found, _documentation(node)
    lines = function.source.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    words: list[str] = []
    kept: list[str | None] = []
    end = 0
    for token in tokens:
        last = starts[token.end[0] - 1] + token.end[1]
        if not token.string.strip() or last <= end:  # line ends and indents go with what comes after them
            continue
        place = (token.start[0], len(lines[token.start[0] - 1][: token.start[1]].encode()))
        if place != documentation:
            words.append(function.source[end:last])
            kept.append(kinds.get(place) if token.type == tokenize.NAME else "." if token.string == "." else None)
        end = last
    return Sentence(words=words, tags=_chained(kept), group=function.file, place=function.place)


def _documentation(function: Any) -> Place | None:
    """Where the docstring is, which holds no names."""
    first = function.body[0]
    text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return (first.lineno, first.col_offset) if text else None


def _chained(kinds: list[str | None]) -> list[str]:
    """IOB2 tags: attributes with a dot between them are one entity."""
    tags = []
    for number, kind in enumerate(kinds):
        if kind is None:
            tags.append(OUTSIDE)
        elif kind == ".":
            inside = 0 < number < len(kinds) - 1 and kinds[number - 1] == kinds[number + 1] == "ATTRIBUTE"
            tags.append("I-ATTRIBUTE" if inside else OUTSIDE)
        else:
            goes_on = kind == "ATTRIBUTE" and number > 1 and tags[-1] == "I-ATTRIBUTE"
            tags.append(f"{'I' if goes_on else 'B'}-{kind}")
    return tags


class Roles(ast.NodeVisitor):
    """What the names of a function stand for, by their places.

    Args:
        function: its tree.
    """

    def __init__(self, function: ast.AST) -> None:
        self.found: dict[Place, str] = {}
        self._parameters = {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}
        declared = {name for node in ast.walk(function) if isinstance(node, ast.Global) for name in node.names}
        bound = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and not _loads(node)}
        bound |= {node.name for node in ast.walk(function) if isinstance(node, ast.ExceptHandler) and node.name}
        bound |= {
            (node.asname or node.name).partition(".")[0] for node in ast.walk(function) if isinstance(node, ast.alias)
        }
        self._locals = bound - declared
        self.visit(function)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        before = "async def " if isinstance(node, ast.AsyncFunctionDef) else "def "
        self.found[node.lineno, node.col_offset + len(before)] = "FUNCTION"
        self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_arg(self, node: ast.arg) -> None:
        self.found[node.lineno, node.col_offset] = "PARAMETER"
        self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg is not None:
            self.found[node.lineno, node.col_offset] = "KEYWORD"
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self.found[node.lineno, node.col_offset] = self._kind(node.id)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute):
            self.found[_attribute(node.func)] = "METHOD"

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        self.found[_attribute(node)] = "ATTRIBUTE"

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        if sys.version_info >= (3, 12):  # before, a formatted string is one token, and places in it are wrong
            self.generic_visit(node)

    def _kind(self, name: str) -> str:
        if name in self._parameters:
            return "PARAMETER"
        if name in self._locals:
            return "LOCAL"
        return "BUILTIN" if name in BUILTINS else "GLOBAL"


def _loads(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _attribute(node: ast.Attribute) -> Place:
    assert node.end_lineno is not None
    assert node.end_col_offset is not None
    return node.end_lineno, node.end_col_offset - len(node.attr.encode())
