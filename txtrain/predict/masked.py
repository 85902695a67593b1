"""Fills in masked tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from txtrain.data.padded import RowMaker
from txtrain.data.tokenizer import ROLES
from txtrain.errors import UserError
from txtrain.predict.predictor import Given, Predictor, text_of

if TYPE_CHECKING:
    from txtrain.trained import Trained


@dataclass(frozen=True)
class MaskedText:
    """Tokens of a text, the mask's among them."""

    tokens: NDArray[np.int64]


class MaskFiller(Predictor):
    """What may stand in the place of each `<mask>` in a text (or what the tokenizer's own mask token is).

    Args:
        trained: a masked language model.
        top: how many tokens to tell for each mask.
        field: of a JSON object, with the text.
    """

    def __init__(self, trained: "Trained", *, top: int = 5, field: str = "text") -> None:
        super().__init__(trained)
        if top < 1:
            raise UserError(f"top={top} tells nothing: type top=1 or more")
        self.field = field
        tokenizer = trained.tokenizer
        self.mask = tokenizer.special("mask")
        self.rows = RowMaker(tokenizer, seq_len=trained.max_len)
        self.special = sorted(tokenizer.special_ids)
        self.top = min(top, tokenizer.vocab_size - len(self.special))
        self._names = sorted({*ROLES["mask"], str(tokenizer.core.id_to_token(self.mask))})
        texts = tokenizer.core.decode_batch([[token] for token in range(tokenizer.vocab_size)])
        # Then the space before a mask belongs to the token that is masked.
        self._words_have_spaces = any(text[:1] == " " and text[1:].isalpha() for text in texts)

    def read(self, given: Given) -> MaskedText:
        parts = re.split("|".join(map(re.escape, self._names)), text_of(given, self.field))
        if len(parts) == 1:
            raise UserError(f"the text has no {self._names[0]}: write one in the place that is to be filled in")
        if self._words_have_spaces:
            parts = [part.removesuffix(" ") for part in parts[:-1]] + parts[-1:]
        encoded = self.trained.tokenizer.encode_batch(parts)
        tokens = [token for ids in encoded for token in (self.mask, *ids)][1:]
        if len(tokens) > self.rows.seq_len - 2:
            raise UserError(
                f"the text has {len(tokens)} tokens, and the model reads {self.rows.seq_len - 2}: shorten it"
            )
        return MaskedText(np.array(tokens, dtype=np.int64))

    def predict(self, inputs: Sequence[MaskedText]) -> list[dict[str, Any]]:
        batch = self.rows.batch([(item.tokens, None) for item in inputs])
        tokens, padding = (batch[name].to(self.trained.device) for name in ("tokens", "padding"))
        at = tokens == self.mask
        logits = self.logits(tokens, padding, at).float()
        logits[:, self.special] = -torch.inf
        chances, ids = logits.softmax(-1).topk(self.top)
        told, first = [], 0
        for item, count in zip(inputs, at.sum(1).tolist(), strict=True):
            found = slice(first, first + count)
            first += count
            told.append(self._record(item.tokens, ids[found].tolist(), chances[found].tolist()))
        return told

    def logits(self, tokens: Tensor, padding: Tensor, at: Tensor) -> Tensor:
        """Of the N tokens that `at` says, (N, V)."""
        return self.trained.model(tokens, padding=padding, at=at)

    def _record(self, tokens: NDArray[np.int64], ids: list[list[int]], chances: list[list[float]]) -> dict[str, Any]:
        decode, filled = self.trained.tokenizer.decode, tokens.copy()
        filled[tokens == self.mask] = [best[0] for best in ids]
        masks = [
            [{"token": decode([token]), "probability": chance} for token, chance in zip(*row, strict=True)]
            for row in zip(ids, chances, strict=True)
        ]
        return {"filled": decode(filled.tolist()), "masks": masks}


class PairMaskFiller(MaskFiller):
    """The same for a model that also says whether passages follow each other."""

    def logits(self, tokens: Tensor, padding: Tensor, at: Tensor) -> Tensor:
        return self.trained.model(tokens, padding=padding, at=at)[0]
