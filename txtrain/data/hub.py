"""Data sets of the Hugging Face Hub."""

import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import islice
from typing import Any

from txtrain.data.language import LanguageData
from txtrain.data.split import Document
from txtrain.errors import UserError

PATIENCE = 5.0  # seconds to wait for an answer


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
        if streaming and max_documents is None:
            raise UserError("data.streaming=true needs an end: set data.max_documents=10000")
        if max_documents is not None and max_documents < 1:
            raise UserError(f"data.max_documents={max_documents} is too small: set data.max_documents=1 or more")
        self.dataset, self.config, self.split, self.field, self.revision = name, config, split, field, revision
        self.streaming, self.max_documents = streaming, max_documents
        self._rows: Any = None

    def identity(self) -> Any:
        return [self.dataset, self.config, self.split, self.field, self.revision, self.streaming, self.max_documents]

    def documents(self) -> Iterator[Document]:
        if self._rows is None:
            self._rows = self._load()
        for row in islice(self._rows, self.max_documents):
            yield row[self.field], row[self.field]

    def _load(self) -> Any:
        """Rows that can be read again and again; those of a stream are kept in memory."""
        if not os.path.exists(self.dataset) and not os.environ.get("HF_HUB_OFFLINE"):
            self._reach_hub()
        import datasets

        try:
            rows = datasets.load_dataset(
                self.dataset, self.config, split=self.split, revision=self.revision, streaming=self.streaming
            )
            if rows.column_names is not None and self.field not in rows.column_names:
                raise UserError(
                    f"data.field={self.field} is no column of {self.dataset}: set data.field to one of "
                    f"{', '.join(rows.column_names)}"
                )
            return list(islice(rows, self.max_documents)) if self.streaming else rows.select_columns([self.field])
        except UserError:
            raise
        except Exception as error:  # whatever the Hub, the network or the data set's builder raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"data.name={self.dataset} cannot be loaded ({reason}): check data.name, data.config and data.split"
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
                f"data.name={self.dataset} needs {hub}, which cannot be reached ({reason}): connect, set "
                "HF_HUB_OFFLINE=1 to use what was downloaded before, or use data=text data.path=FILE"
            )

    def _named(self) -> str:
        return f"data.name={self.dataset}"
