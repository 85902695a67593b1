"""Beam search: the likeliest continuation as a whole, rather than token by token."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from txtrain.generate.continuation import Continuation
from txtrain.generate.decode import Reader, started
from txtrain.generate.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A continuation and the sum of its tokens' log probabilities, divided by length^penalty once it has ended."""

    tokens: tuple[int, ...]
    score: float


class Beams:
    """The likeliest continuations of one prompt, some running and some ended; the same rules as in transformers.

    Args:
        width: N, how many of each kind are kept.
        limit: most tokens.
        length_penalty: above 0 favours long texts, below 0 short ones.
        ends: whether a continuation ends with its last token.
        num_ends: how many tokens end a text.
    """

    def __init__(
        self,
        *,
        width: int,
        limit: int,
        ends: Callable[[tuple[int, ...]], bool],
        num_ends: int = 1,
        length_penalty: float = 1.0,
    ) -> None:
        if width < 1:
            raise ValueError(f"beams is {width}: give 1 or more, such as --beams 4")
        self.width, self.limit, self.ends, self.length_penalty = width, limit, ends, length_penalty
        self.candidates = max(2, 1 + num_ends) * width  # so many that N are left if all others end
        self.running = [Hypothesis(tokens=(), score=0.0)]
        self.ended: list[Hypothesis] = []
        self.length = 0

    def advance(self, log_probabilities: Tensor) -> list[int]:
        """One token more: log probabilities (running, V) → for each hypothesis that runs now the row it came from."""
        self.length += 1
        so_far = torch.tensor([[beam.score] for beam in self.running], device=log_probabilities.device)
        total = (so_far + log_probabilities).flatten()
        best = total.topk(min(self.candidates, total.numel()))
        old, rows = self.running, list[int]()
        self.running = []
        for rank, (score, index) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            row, token = divmod(index, log_probabilities.size(1))
            tokens = (*old[row].tokens, token)
            if self.length == self.limit or self.ends(tokens):
                if rank < self.width:
                    self.ended.append(Hypothesis(tokens=tokens, score=self._divided(score)))
            elif len(rows) < self.width:
                self.running.append(Hypothesis(tokens=tokens, score=score))
                rows.append(row)
        self.ended = sorted(self.ended, key=lambda beam: -beam.score)[: self.width]
        return rows

    @property
    def done(self) -> bool:
        """Whether no running one is better, at its present length, than the worst of N that have ended."""
        full = len(self.ended) == self.width
        return not self.running or (full and self._divided(self.running[0].score) <= self.ended[-1].score)

    def _divided(self, score: float) -> float:
        return score / self.length**self.length_penalty


@torch.inference_mode()
def search(reader: Reader, text: Continuation, beams: Beams, sampling: Sampling) -> tuple[int, ...]:
    """The tokens of the best continuation, which are not added to the text yet."""
    logits = started(reader, [text.prompt])
    seen = sampling.new_seen([text.context], logits.size(-1), logits.device)
    while True:
        rows = torch.tensor(beams.advance(sampling.penalized(logits.float().log_softmax(-1), seen)))
        if beams.done:
            return beams.ended[0].tokens
        rows = rows.to(logits.device)
        tokens = torch.tensor([beam.tokens[-1] for beam in beams.running], device=logits.device)
        if seen is not None:
            seen = seen[rows].scatter(1, tokens[:, None], True)
        reader.select(rows)
        logits = reader.read(tokens)
