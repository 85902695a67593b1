"""The user's own labelled texts."""

from collections.abc import Iterator
from typing import Any

from txtrain.data import files
from txtrain.data.tables import find_tables, label_field, read_table, tables_read_anew, text_field
from txtrain.data.texts import Example, LabelledText
from txtrain.errors import UserError


class LabelledFiles(LabelledText):
    """Texts or pairs of texts with labels, from tables.

    Args:
        path: .jsonl, .csv or .tsv files, a folder or a glob of them, or a list.
        validation_path: tables to validate on. Default: `validation_fraction` of each label in `path`.
        text: the column with the text, or the first text of a pair.
        pair: the column with the second text. Default: there is one text.
        label: the column with the label.
        base: as in `LabelledText`.
    """

    def __init__(
        self,
        *,
        path: str | list[str],
        validation_path: str | list[str] | None = None,
        text: str = "text",
        pair: str | None = None,
        label: str = "label",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.path, self.validation_path, self.text, self.pair, self.label = path, validation_path, text, pair, label

    def identity(self) -> Any:
        tables = find_tables(self.path)
        found: dict[str, Any] = {"files": files.state(tables)}
        if self.validation_path is not None:
            apart = find_tables(self.validation_path, "data.validation_path")
            found["validation_files"] = files.state(apart)
            tables = [*tables, *apart]
        return found | {"text": self.text, "pair": self.pair, "label": self.label} | tables_read_anew(tables)

    def examples(self) -> Iterator[Example]:
        return self._read(self.path, "data.path")

    def validation_examples(self) -> Iterator[Example] | None:
        return None if self.validation_path is None else self._read(self.validation_path, "data.validation_path")

    def _read(self, path: str | list[str], key: str) -> Iterator[Example]:
        for file in find_tables(path, key):
            for place, row in read_table(file):
                text = text_field(row, self.text, "data.text", place)
                pair = None if self.pair is None else text_field(row, self.pair, "data.pair", place)
                if not text.strip() and not (pair or "").strip():
                    raise UserError(f"{place}: {self.text} is empty: remove the row")
                yield Example(
                    text=text, pair=pair, label=label_field(row, self.label, "data.label", place), place=place
                )

    def _named(self) -> str:
        return f"data.path={self.path}"
