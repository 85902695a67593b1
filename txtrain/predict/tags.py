"""Tags the words of texts, and finds entities."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from txtrain.data.padded import RowMaker
from txtrain.data.tagged import cut, join
from txtrain.data.tagged_files import spaced
from txtrain.errors import UserError
from txtrain.predict.predictor import Given, Predictor, text_of
from txtrain.task.scores import Entities

if TYPE_CHECKING:
    from txtrain.trained import Trained

WORD = re.compile(r"\s*(?:\w+|[^\w\s])")


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Words that go through the model together: their tokens, and where each word begins, -1 where nothing of it is."""

    tokens: NDArray[np.int64]
    heads: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Words:
    """A text as words, and its pieces."""

    words: Sequence[str]
    pieces: Sequence[Piece]


class WordTagger(Predictor):
    """The tag of each word with its probability, and where the tags are those of entities, the entities.

    A line of text is cut into words and signs; a JSON object may have them as a list. Longer texts go through in
    pieces.

    Args:
        trained: a tagger.
        text, tokens: fields of a JSON object, with the text or its words.
    """

    def __init__(self, trained: "Trained", *, text: str = "text", tokens: str = "tokens") -> None:
        super().__init__(trained)
        self.text, self.tokens = text, tokens
        self.rows = RowMaker(trained.tokenizer, seq_len=trained.max_len)
        self.finds_entities = Entities.describe(trained.labels)

    def read(self, given: Given) -> Words:
        listed = given.get(self.tokens) if isinstance(given, Mapping) else None
        if listed is None:
            words = WORD.findall(text_of(given, self.text))
        elif isinstance(listed, list) and all(isinstance(word, str) for word in listed):
            words = spaced(listed)
        else:
            raise UserError(f"{self.tokens} is no list of words: give one, or the text as {self.text}")
        if not words:
            raise UserError("it has no word: give a text")
        encoded = self.trained.tokenizer.encode_batch(words)
        pieces = []
        for first, last in cut(encoded, self.rows.seq_len - 2):
            row, heads = join(encoded[first:last], self.rows.seq_len - 2)
            pieces.append(Piece(tokens=row, heads=heads))
        return Words(words=[word.strip() for word in words], pieces=pieces)

    def predict(self, inputs: Sequence[Words]) -> list[dict[str, Any]]:
        pieces = [piece for item in inputs for piece in item.pieces]
        batch = self.rows.batch([(piece.tokens, None) for piece in pieces])
        tokens, padding = (batch[name].to(self.trained.device) for name in ("tokens", "padding"))
        chances, labels = (
            x.cpu().numpy() for x in self.trained.model(tokens, padding=padding).float().softmax(-1).max(-1)
        )
        told, row = [], 0
        for item in inputs:
            tags: list[str | None] = []
            certain: list[float | None] = []
            for piece in item.pieces:
                for head in piece.heads.tolist():  # after the class token
                    tags.append(self.trained.labels[labels[row, 1 + head]] if head >= 0 else None)
                    certain.append(float(chances[row, 1 + head]) if head >= 0 else None)
                row += 1
            told.append(self._record(item.words, tags, certain))
        return told

    def _record(
        self, words: Sequence[str], tags: Sequence[str | None], certain: Sequence[float | None]
    ) -> dict[str, Any]:
        record: dict[str, Any] = {"tokens": list(words), "tags": list(tags), "probabilities": list(certain)}
        if self.finds_entities:
            record["entities"] = [
                {"type": kind, "first": first, "last": last, "text": " ".join(words[first : last + 1])}
                for kind, first, last in Entities(self.trained.labels).find([tag or "O" for tag in tags])
            ]
        return record
