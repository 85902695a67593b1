"""Language modelling: predict each token from those before it (GPT)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from txtrain.generate import sample
from txtrain.model import Decoder
from txtrain.model.head import IGNORED
from txtrain.plots.view import TextView, View
from txtrain.task.base import Batch, Example, Task

SHOWN = 32  # tokens before and after the place where an example goes on


class CausalLM(Task):
    """Next-token prediction with a decoder.

    A batch has tokens and targets (B, T); with data.packing=documents also documents and positions (B, T).
    """

    model_class = Decoder
    writes_text = True
    takes_prompt = True
    counts_targets = True
    view: ClassVar[type[View]] = TextView

    @property
    def between(self) -> str:  # type: ignore[override]
        return self.data.between

    def logits(self, batch: Batch) -> Tensor:
        return self.model(batch["tokens"], batch.get("positions"), documents=batch.get("documents"))

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.loss(self.logits(batch), batch["targets"])

    def examples(self, index: Sequence[int]) -> list[Example]:
        """How windows begin, of chats up to the first answer, how they go on, and how the model goes on."""
        batch, found = self.validation_batch(index), []
        for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
            first = next((place for place, target in enumerate(targets) if target != IGNORED), 0)
            cut = first + 1 if first > len(self.data.tokenizer.opening) else min(SHOWN, (len(tokens) + 1) // 2)
            true = [target for target in targets[cut - 1 : cut - 1 + SHOWN] if target != IGNORED]
            given, said = tokens[:cut][-SHOWN:], self._continue(tokens[:cut])
            found.append(Example(self._decode(given), self._decode(true), self._decode(said)))
        return found

    def _continue(self, prompt: list[int]) -> list[int]:
        """The likeliest tokens after a prompt."""
        model, ends = self.model, self.data.end_tokens
        assert isinstance(model, Decoder)
        return list(sample(model, prompt, length=SHOWN, max_len=model.max_len, temperature=0.0, end_tokens=ends))

    def _decode(self, ids: list[int]) -> str:
        text: str = self.data.tokenizer.decode(ids)
        return text

    @classmethod
    def measured(cls, data: Any) -> tuple[str, ...]:
        return (*super().measured(data), "perplexity", "bits_per_byte")

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = super().metrics(sums)
        loss = found["loss"]
        perplexity = math.exp(loss) if loss < 700 else math.inf
        tokens, size = (
            sum(getattr(data, f"validation_{what}") for data in self.validated) for what in ("tokens", "bytes")
        )
        bits_per_byte = loss / math.log(2) * tokens / size
        return found | {"perplexity": perplexity, "bits_per_byte": bits_per_byte}
