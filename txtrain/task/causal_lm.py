"""Language modelling: predict each token from those before it (GPT)."""

import math
from collections.abc import Mapping

from torch import Tensor

from txtrain.model import Decoder
from txtrain.task.base import Batch, Task


class CausalLM(Task):
    """Next-token prediction with a decoder.

    A batch has tokens and targets (B, T); with data.packing=documents also documents and positions (B, T).
    """

    model_class = Decoder
    writes_text = True

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.model(batch["tokens"], batch.get("positions"), documents=batch.get("documents"))
        return self.loss(logits, batch["targets"])

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found, data = super().metrics(sums), self.trainer.datamodule
        loss = found["loss"]
        perplexity = math.exp(loss) if loss < 700 else math.inf
        bits_per_byte = loss / math.log(2) * data.validation_tokens / data.validation_bytes
        return found | {"perplexity": perplexity, "bits_per_byte": bits_per_byte}
