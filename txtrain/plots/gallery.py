"""The pictures of an evaluation: looked at by all devices together, drawn by the first one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from lightning import Callback
from torch import Tensor, nn

from txtrain.callbacks.samples import evaluating
from txtrain.data.order import fair_sample
from txtrain.errors import UserError
from txtrain.model.maps import recording, sizes_of_stacks
from txtrain.plots.attention import draw_attention
from txtrain.plots.confusion import draw_confusion
from txtrain.plots.encoding import draw_encodings
from txtrain.plots.guesses import Guesses
from txtrain.plots.samples import Shown, draw_pictures, draw_table
from txtrain.plots.view import View
from txtrain.task.base import Example

PICTURES, TEXTS = 24, 10  # samples that are shown
MOST_HEADS = 8  # where none are named


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is looked at, as the user says.

    Args:
        layers, heads: of attention maps. Default: the first, the middle and the last layer; the first heads.
        sample: the number of a validation sample, that of the attention maps and the first of those that are told.
    """

    layers: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    sample: int = 0

    def of(self, model: nn.Module, samples: int) -> tuple[list[int], list[int]]:
        """Layers and heads of a model.

        Raises:
            UserError: it has no such layer or head, or the data no such sample.
        """
        sizes = sizes_of_stacks(model)
        deepest, widest = max(layers for layers, _ in sizes), min(heads for _, heads in sizes)
        for option, name, chosen, number in (
            ("layers", "layer", self.layers, deepest),
            ("heads", "head", self.heads, widest),
            ("sample", "sample", [self.sample], samples),
        ):
            beyond = [one for one in chosen or () if not 0 <= one < number]
            if beyond:
                there = f"{name}s are 0 to {number - 1}" if number > 1 else f"{name} 0 is the only one"
                raise UserError(f"--{option} {beyond[0]}: there is no such {name}, {there}: type --{option} 0")
        layers = dict.fromkeys((0, deepest // 2, deepest - 1) if self.layers is None else self.layers)
        heads = dict.fromkeys(range(min(widest, MOST_HEADS)) if self.heads is None else self.heads)
        return list(layers), list(heads)


class Gallery(Callback):
    """Draws after a validation what there is to see of the task at hand; of several data sets samples of the first.

    Args:
        choice: what is looked at.
        model: whole; its encodings are drawn at once, since a strategy may share out its weights later.
        samples: of validation, how many.
        guesses: what is said of each of them, of a task that gives each a label.

    Attributes:
        pictures: PNG files by name, on the first device.
    """

    def __init__(self, choice: Choice, model: nn.Module, samples: int, guesses: Guesses | None) -> None:
        self.layers, self.heads = choice.of(model, samples)
        self.numbers = list(dict.fromkeys([choice.sample, *fair_sample(samples, TEXTS)]))[:TEXTS]
        self.guesses = guesses
        self.pictures = draw_encodings(model)

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        view = task.view(task)
        with evaluating(task), trainer.precision_plugin.forward_context():
            batch = task.validation_batch(self.numbers[:1])
            with recording(task.model, layers=self.layers, heads=self.heads) as maps:
                task.logits(batch)
            examples = task.examples(self.numbers) if self.guesses is None else []
        if not trainer.is_global_zero:
            return
        attention = draw_attention(maps, view.readings(batch))
        self.pictures = attention | self.pictures | view.alone(batch)
        if isinstance(getattr(task, "confusions", None), Tensor):
            self.pictures["confusion"] = draw_confusion(task.confusions.cpu().numpy(), task.data.labels)
        self.pictures["samples"] = self._of_samples(task, view, examples)

    def _of_samples(self, task: Any, view: View, examples: Sequence[Example]) -> bytes:
        """A few samples with what is said of them, of labelled ones the wrong ones first."""
        samples, labels = view.data.samples("validation"), view.data.labels
        numbers = self.numbers if self.guesses is None else self.guesses.wrong_first(PICTURES)
        batch = samples.batch(np.asarray(numbers, dtype=np.int64))
        shares: list[float | None] = [None] * len(numbers)
        if self.guesses is not None:
            said = zip(batch["targets"].tolist(), self.guesses.guesses[numbers].tolist(), strict=True)
            texts = zip(task.described(batch), said, strict=True)
            examples = [Example(text, labels[target], labels[guess]) for text, (target, guess) in texts]
            shares = list(self.guesses.probabilities[numbers].tolist())
        pictures = [view.picture(batch, row) for row in range(len(numbers))]
        shown = [
            Shown(picture=picture, reference=example.reference, said=example.said, probability=share)
            for picture, example, share in zip(pictures, examples, shares, strict=True)
            if picture is not None
        ]
        return draw_pictures(shown, upward=view.upward) if shown else draw_table(examples[:TEXTS])
