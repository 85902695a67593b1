"""Translation: an encoder reads the source, and a decoder writes the target (https://arxiv.org/abs/1706.03762)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from txtrain.generate.translate import InStep, Translator
from txtrain.model import EncoderDecoder
from txtrain.model.flops import Flow, embedding_flops, head_flops, stack_flops
from txtrain.plots.view import PairView, View
from txtrain.predict.predictor import Predictor
from txtrain.predict.translating import TextTranslator
from txtrain.task.base import Batch, Example, Task
from txtrain.task.overlap import Overlap


class Translation(Task):
    """Each target token is predicted from the whole source and the target tokens before it.

    In training the decoder reads the true target (teacher forcing); no padding of it needs a mask, since no token sees
    those after it. Validation translates too, and counts what BLEU and chrF are made of, so that they are those of the
    whole set on any number of devices.

    A batch has source and source_padding (B, S), tokens and targets (B, T), and index (B,).

    Args:
        beams: hypotheses of beam search in validation; 1 takes the likeliest token each time.
        length_penalty: of beam search: a finished translation's log probability is divided by length^this.
        bleu_tokenize: sacrebleu's tokenizer for BLEU, such as `13a`, `zh`, `ja-mecab`.
        base: as in `Task`.
    """

    model_class = EncoderDecoder
    content = "translations"
    takes_prompt = True
    predictor: ClassVar[type[Predictor] | None] = TextTranslator
    view: ClassVar[type[View]] = PairView

    def __init__(self, *, beams: int = 1, length_penalty: float = 1.0, bleu_tokenize: str = "13a", **base: Any) -> None:
        super().__init__(**base)
        self.beams, self.length_penalty = beams, length_penalty
        self.overlap = Overlap(tokenize=bleu_tokenize)

    @classmethod
    def check_settings(cls, *, beams: int = 1, bleu_tokenize: str = "13a", **settings: Any) -> None:
        if beams < 1:
            raise ValueError(f"task.beams is {beams}: give 1 or more, such as task.beams=4")
        Overlap(tokenize=bleu_tokenize)

    def logits(self, batch: Batch) -> Tensor:
        """Of the target's tokens (B, T, V)."""
        return self.model(batch["source"], batch["tokens"], batch["source_padding"])

    def losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.loss(self.logits(batch), batch["targets"])

    def flops(self, batch: Batch) -> float:
        assert isinstance(self.model, EncoderDecoder)
        encoder, decoder = self.model.encoder, self.model.decoder
        source = Flow(rows=len(batch["source"]), length=batch["source"].size(1))
        target = Flow(rows=len(batch["tokens"]), length=batch["tokens"].size(1))
        total = embedding_flops(encoder.embedding, source) + stack_flops(encoder.stack, source)
        total += embedding_flops(decoder.embedding, target) + stack_flops(decoder.stack, target, source)
        return total + head_flops(decoder.head, target.vectors, trained=target.trained)

    def examples(self, index: Sequence[int]) -> list[Example]:
        data = self.data
        pairs = data.references(index)
        written = self.translate([data.source_ids(source) for source, _ in pairs])
        return [Example(source, target, said) for (source, target), said in zip(pairs, written, strict=True)]

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        sources = [row[real].tolist() for row, real in zip(batch["source"], batch["source_padding"], strict=True)]
        written = self.translate(sources)
        real = [(row, number) for row, number in enumerate(batch["index"].tolist()) if number >= 0]
        references = self.data.references([number for _, number in real])
        counts = self.overlap.counts([written[row] for row, _ in real], [target for _, target in references])
        return super().sums(batch) | {name: count.to(self.device) for name, count in counts.items()}

    @classmethod
    def measured(cls, data: Any) -> tuple[str, ...]:
        return (*super().measured(data), "perplexity", "bleu", "chrf")

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = super().metrics(sums)
        perplexity = math.exp(found["loss"]) if found["loss"] < 700 else math.inf
        return found | {"perplexity": perplexity} | self.overlap.scores(sums)

    between = " → "

    def write_sample(self, prompt: str | None) -> tuple[str, str]:
        data = self.data
        source = prompt or data.references([0])[0][0]
        return source, self.translate([data.source_ids(source)])[0]

    def translate(self, sources: Sequence[Sequence[int]]) -> list[str]:
        """Translations of a few sources (ids). Every rank must call it, with as many sources as it likes."""
        data = self.data
        assert isinstance(self.model, EncoderDecoder)
        translator = Translator(
            self.model,
            decode=data.target_tokenizer.decode,
            tokens=data.decoder_tokens,
            max_len=data.seq_len,
            beams=self.beams,
            length_penalty=self.length_penalty,
        )
        readers: list[InStep] = []

        def in_step(reader: Any) -> InStep:
            readers.append(InStep(reader, self._anyone))
            return readers[0]

        written = translator.translate(sources, in_step)
        readers[0].finish()
        return written

    def _anyone(self, here: bool) -> bool:
        if self.trainer.world_size == 1:
            return False
        return bool(self._sum_over_ranks(torch.tensor(int(here), device=self.device)))
