"""Tags for the words of a text, by an encoder that may have been trained before."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from txtrain.model import EncoderWithHead
from txtrain.plots.view import TextView, View
from txtrain.predict.predictor import Predictor
from txtrain.predict.tags import WordTagger
from txtrain.task.base import Batch, Example, Task
from txtrain.task.scores import Entities, accuracy, count_confusions, f1, macro_f1

OUTSIDE = "O"  # the tag of words of no entity
SHOWN = 32  # words of a sample


class TokenClassification(Task):
    """One of L tags for each word, by an encoder whose head scores the first token of each word.

    Where the tags are those of entities (B-PER I-PER O), entities are counted as seqeval does. A batch has tokens,
    padding and targets (B, T).
    """

    model_class: ClassVar[type[nn.Module]] = EncoderWithHead
    content: ClassVar[str] = "tagged text"
    targets: ClassVar[str] = "words"
    predictor: ClassVar[type[Predictor] | None] = WordTagger
    view: ClassVar[type[View]] = TextView
    weighs_classes: ClassVar[bool] = True
    confusions: Tensor | None = None

    def logits(self, batch: Batch) -> Tensor:
        """Scores of the tags (B, T, L)."""
        return self.model(batch["tokens"], padding=batch["padding"])

    def examples(self, index: Sequence[int]) -> list[Example]:
        """Words with their tags, and with those that the model gives."""
        batch, labels = self.validation_batch(index), self.data.labels
        guesses, found = self.logits(batch).argmax(-1), []
        for kept, *row in zip(TextView(self).shown(batch), batch["tokens"], batch["targets"], guesses, strict=True):
            tokens, targets, said = (values[kept].tolist() for values in row)
            heads = [place for place, target in enumerate(targets) if target >= 0]
            words = [
                (self.data.tokenizer.decode(tokens[head:end]).strip(), labels[targets[head]], labels[said[head]])
                for head, end in zip(heads, [*heads[1:], len(tokens)], strict=True)
            ]
            found.append(Example("", _tagged(words, 1), _tagged(words, 2), words))
        return found

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.loss(self.logits(batch), batch["targets"])

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        logits, targets = self.logits(batch), batch["targets"]
        _, entropy = self.loss(logits, targets)
        guesses = logits.argmax(-1)
        confusions = count_confusions(guesses.flatten(), targets.flatten(), logits.size(-1))
        counted = {"entropy": entropy, "targets": confusions.sum(), "confusions": confusions}
        entities = self._entities()
        return counted if entities is None else counted | {"entities": entities.count(guesses, targets)}

    @classmethod
    def measured(cls, data: Any) -> tuple[str, ...]:
        entities = ("precision", "recall") if Entities.describe(data.labels) else ()
        return (*super().measured(data), "accuracy", *entities, "f1")

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        counts = self.confusions = sums["confusions"]
        scores = super().metrics(sums) | {"accuracy": accuracy(counts)}
        return scores | (f1(sums["entities"]) if "entities" in sums else {"f1": macro_f1(counts)})

    def _entities(self) -> Entities | None:
        labels = self.data.labels
        return Entities(labels) if Entities.describe(labels) else None


def _tagged(words: Sequence[tuple[str, str, str]], which: int) -> str:
    """A few words, each with its tag unless that is O, such as `EU/B-ORG rejects`."""
    shown = [word[0] if word[which] == OUTSIDE else f"{word[0]}/{word[which]}" for word in words[:SHOWN]]
    return " ".join(shown) + " …" * (len(words) > SHOWN)
