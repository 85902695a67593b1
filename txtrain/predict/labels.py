"""Labels texts and pairs of texts."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from txtrain.data.padded import RowMaker
from txtrain.errors import UserError
from txtrain.predict.predictor import Given, Predictor, text_of

if TYPE_CHECKING:
    from txtrain.trained import Trained

Pair = tuple[NDArray[np.int64], NDArray[np.int64] | None]


class TextLabeller(Predictor):
    """The label of each text, or pair of texts, and the probabilities of all labels. Longer texts are cut as in
    training.

    Args:
        trained: a classifier of texts.
        text, pair: fields of a JSON object, with the text and, for pairs, the second one.
        top: how many labels to tell, the likeliest first. Default: all.
    """

    def __init__(self, trained: "Trained", *, text: str = "text", pair: str = "pair", top: int | None = None) -> None:
        super().__init__(trained)
        if top is not None and top < 1:
            raise UserError(f"top={top} tells nothing: type top=1 or more")
        self.text, self.pair, self.top = text, pair, top
        self.rows = RowMaker(trained.tokenizer, seq_len=trained.max_len)

    def read(self, given: Given) -> Pair:
        texts = [text_of(given, self.text)]
        if isinstance(given, Mapping) and given.get(self.pair) is not None:
            texts.append(text_of(given, self.pair))
        encoded = [np.array(ids, dtype=np.int64) for ids in self.trained.tokenizer.encode_batch(texts)]
        return encoded[0], encoded[1] if len(encoded) > 1 else None

    def predict(self, inputs: Sequence[Pair]) -> list[dict[str, Any]]:
        batch = self.rows.batch(inputs, types=any(pair is not None for _, pair in inputs))
        batch = {name: tensor.to(self.trained.device) for name, tensor in batch.items()}
        logits = self.trained.model(batch["tokens"], types=batch.get("types"), padding=batch["padding"])
        return label_records(logits.float(), self.trained, self.top)


def label_records(logits: Tensor, trained: "Trained", top: int | None = None) -> list[dict[str, Any]]:
    """What is said of each sample, by the model's problem type, as transformers' pipelines do.

    Args:
        logits: float32, (samples, labels).
        trained: the model; labels that exclude each other get a softmax, several that may hold together and one alone
            get a sigmoid, and what a regression says stays as it is.
        top: how many labels to tell.
    """
    if trained.problem_type == "regression":
        return [{"scores": dict(zip(trained.labels, row, strict=True))} for row in logits.tolist()]
    together = trained.problem_type == "multi_label_classification" or len(trained.labels) == 1
    probabilities = logits.sigmoid() if together else logits.softmax(-1)
    return [label_record(row, trained.labels, top) for row in probabilities.tolist()]


def label_record(probabilities: Sequence[float], labels: Sequence[str], top: int | None = None) -> dict[str, Any]:
    """What is said of a sample: its likeliest label, and the probabilities of all of them or of the likeliest."""
    order = sorted(range(len(labels)), key=lambda label: -probabilities[label])
    told = {labels[label]: probabilities[label] for label in order[:top]}
    return {"label": labels[order[0]], "probabilities": told}
