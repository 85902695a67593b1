"""Parallel text of the Hugging Face Hub."""

from collections.abc import Iterator
from typing import Any

from txtrain.data.hub import HubRows
from txtrain.data.pair_files import text_in
from txtrain.data.parallel import Pair
from txtrain.data.translation import TranslationData


class HubPairs(TranslationData):
    """A data set of the Hugging Face Hub, or a folder that `datasets.load_dataset` reads, of pairs of texts.

    Args:
        name: such as `Helsinki-NLP/opus-100`.
        config: which of its configurations, such as `de-en`.
        split: of the data set, which is split again by `validation_fraction`.
        source_field, target_field: columns; in `translation.en` what comes after the dot is a field of the column.
        revision: a branch, tag or commit of the data set.
        streaming: read the first `max_documents` as they arrive instead of downloading everything.
        max_documents: most pairs to take; null takes all where `streaming` is off.
        base: as in `TranslationData`.
    """

    def __init__(
        self,
        *,
        name: str,
        config: str | None = None,
        split: str = "train",
        source_field: str = "translation.en",
        target_field: str = "translation.de",
        revision: str | None = None,
        streaming: bool = False,
        max_documents: int | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.source_field, self.target_field = source_field, target_field
        self.rows = HubRows(
            name=name, config=config, split=split, revision=revision, streaming=streaming, most=max_documents
        )

    def identity(self) -> Any:
        return self.rows.identity(self.source_field, self.target_field)

    def pairs(self) -> Iterator[Pair]:
        columns = {"source_field": self.source_field, "target_field": self.target_field}
        rows = self.rows.read(**{option: field.partition(".")[0] for option, field in columns.items()})
        for number, row in enumerate(rows):
            place = f"{self.rows.name} row {number}"
            source = text_in(row, self.source_field, place, "source")
            yield Pair(source, text_in(row, self.target_field, place, "target"), place)

    def _named(self) -> str:
        return f"data.name={self.rows.name}"
