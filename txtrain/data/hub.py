"""Data sets of the Hugging Face Hub."""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import islice
from typing import Any

from txtrain.data.documents import text_of
from txtrain.data.language import LanguageData
from txtrain.data.split import Document
from txtrain.errors import UserError

PATIENCE = 5.0  # seconds to wait for an answer


class HubRows:
    """Rows of a data set of the Hub.

    Args:
        name, config, split, revision: as `datasets.load_dataset` takes them.
        streaming: read the first rows as they arrive instead of downloading everything.
        most: rows to take; None takes all where `streaming` is off.
    """

    def __init__(
        self, *, name: str, config: str | None, split: str, revision: str | None, streaming: bool, most: int | None
    ) -> None:
        if streaming and most is None:
            raise UserError("data.streaming=true needs an end: set data.max_documents=10000")
        if most is not None and most < 1:
            raise UserError(f"data.max_documents={most} is too small: set data.max_documents=1 or more")
        self.name, self.config, self.split, self.revision = name, config, split, revision
        self.streaming, self.most = streaming, most
        self._rows: Any = None

    def identity(self, *fields: str) -> list[Any]:
        """What tells these fields of the rows from any other."""
        return [self.name, self.config, self.split, *fields, self.revision, self.streaming, self.most]

    def read(self, **fields: str) -> Iterator[dict[str, Any]]:
        """The columns of each row, given by the names of the options that say which they are."""
        if self._rows is None:
            self._rows = self._load(fields)
        return islice(iter(self._rows), self.most)

    def table(self, **fields: str) -> Any:
        """The columns as `datasets` holds them, where each row can be read by its number."""
        if self._rows is None:
            self._rows = self._load(fields)
        return self._rows

    def _load(self, fields: dict[str, str]) -> Any:
        """Rows that can be read again and again; those of a stream are kept in memory."""
        if not os.path.exists(self.name) and not os.environ.get("HF_HUB_OFFLINE"):
            self._reach_hub()
        import datasets

        try:
            rows = datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=self.streaming
            )
            for option, field in fields.items():
                if rows.column_names is not None and field not in rows.column_names:
                    raise UserError(
                        f"data.{option}={field} is no column of {self.name}: set data.{option} to one of "
                        f"{', '.join(rows.column_names)}"
                    )
            return (
                list(islice(rows, self.most))
                if self.streaming
                else rows.select_columns(list(dict.fromkeys(fields.values())))
            )
        except UserError:
            raise
        except Exception as error:  # whatever the Hub, the network or the data set's builder raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"data.name={self.name} cannot be loaded ({reason}): check data.name, data.config and data.split"
            ) from None

    def _reach_hub(self) -> None:
        """Without this, a machine with no network waits through minutes of retries."""
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        answers: list[str] = []

        def ask() -> None:
            try:
                urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=PATIENCE).close()
                answers.append("")
            except urllib.error.HTTPError:
                answers.append("")  # an answer all the same
            except (OSError, ValueError) as error:
                answers.append(str(getattr(error, "reason", error)))

        # In a thread, since the timeout does not cover the look-up of the name.
        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        thread.join(PATIENCE)
        reason = answers[0] if answers else f"no answer in {PATIENCE:.0f} s"
        if reason:
            raise UserError(
                f"data.name={self.name} needs {hub}, which cannot be reached ({reason}): connect, set "
                "HF_HUB_OFFLINE=1 to use what was downloaded before, or use data=text data.path=FILE"
            )


class HubText(LanguageData):
    """A data set of the Hugging Face Hub, or a folder that `datasets.load_dataset` reads.

    Args:
        name: such as `roneneldan/TinyStories`.
        config: which of its configurations, such as `wikitext-2-raw-v1`.
        split: of the data set, which is split again by `validation_fraction`.
        field: the column that holds the text.
        revision: a branch, tag or commit of the data set.
        streaming: read the first `max_documents` as they arrive instead of downloading everything.
        max_documents: most documents to take; null takes all where `streaming` is off.
    """

    def __init__(
        self,
        *,
        name: str,
        config: str | None = None,
        split: str = "train",
        field: str = "text",
        revision: str | None = None,
        streaming: bool = False,
        max_documents: int | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.field = field
        self.source = HubRows(
            name=name, config=config, split=split, revision=revision, streaming=streaming, most=max_documents
        )

    def identity(self) -> Any:
        return self.source.identity(self.field)

    def documents(self) -> Iterator[Document]:
        for number, row in enumerate(self.source.read(field=self.field), start=1):
            text = text_of(row, self.field, f"{self.source.name} row {number}")
            yield text, text

    def _named(self) -> str:
        return f"data.name={self.source.name}"
