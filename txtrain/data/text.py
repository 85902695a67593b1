"""The user's own files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from txtrain.data import files
from txtrain.data.documents import TABLES, read_documents
from txtrain.data.language import LanguageData
from txtrain.data.split import Document
from txtrain.errors import UserError


class TextFiles(LanguageData):
    """Files of plain text, JSON lines, Parquet or tables, also compressed.

    Args:
        path: a file, a folder, a glob, or a list of them.
        field: the field of .jsonl, .parquet, .csv and .tsv that holds the text.
        validation_path: files to validate on. Default: `validation_fraction` of the documents in `path`.
    """

    def __init__(
        self, *, path: str | list[str], field: str = "text", validation_path: str | list[str] | None = None, **base: Any
    ) -> None:
        super().__init__(**base)
        self.path = path
        self.field = field
        self.validation_path = validation_path

    def identity(self) -> Any:
        found: dict[str, Any] = {"files": files.state(self._files("path"))}
        if self.validation_path is not None:
            found["validation_files"] = files.state(self._files("validation_path"))
        paths = [*self._files("path"), *(self._files("validation_path") if self.validation_path is not None else ())]
        plain = [file for file in paths if files.kind(file) not in (".jsonl", ".parquet", *TABLES)]
        return found | {"field": self.field} | files.read_anew(plain)

    def documents(self) -> Iterator[Document]:
        return self._read(self._files("path"))

    def validation_documents(self) -> Iterator[Document] | None:
        return None if self.validation_path is None else self._read(self._files("validation_path"))

    def _files(self, option: str) -> list[Path]:
        found = files.find_files(getattr(self, option), key=f"data.{option}", also=(*files.PLAIN, *TABLES))
        if not any(file.stat().st_size for file in found):
            raise UserError(f"data.{option}={getattr(self, option)} is empty: give a file with text in it")
        return found

    def _read(self, found: list[Path]) -> Iterator[Document]:
        for file in found:
            for text in read_documents(file, self.field):
                yield text, text

    def _named(self) -> str:
        return f"data.path={self.path}"
