"""Beam search: the likeliest continuation as a whole, rather than token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

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

    def advance(self, likeliest: Sequence[Sequence[tuple[int, float]]]) -> list[int]:
        """One token more.

        Args:
            likeliest: of each running hypothesis: at least `candidates` tokens that may follow, and their log
                probabilities, the likeliest first; fewer if there are no more.

        Returns:
            For each hypothesis that runs now, which one of those before it goes on.
        """
        self.length += 1
        old, rows = self.running, list[int]()
        total = [
            (old[row].score + score, row, token) for row, choices in enumerate(likeliest) for token, score in choices
        ]
        best = sorted(total, key=lambda choice: -choice[0])[: self.candidates]
        self.running = []
        for rank, (score, row, token) in enumerate(best):
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
def search(
    reader: Reader, texts: Sequence[Continuation], beams: Sequence[Beams], sampling: Sampling
) -> list[tuple[int, ...]]:
    """The tokens of the best continuation of each text, which are not added to it yet.

    The batch has a row for each hypothesis that runs, those of a text together; a text whose search is done leaves it.
    """
    live = list(beams)
    logits = started(reader, [text.prompt for text in texts])
    seen = sampling.new_seen([text.context for text in texts], logits.size(-1), logits.device)
    while True:
        found = sampling.penalized(logits.float().log_softmax(-1), seen)
        best = found.topk(min(max(one.candidates for one in live), found.size(-1)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        likeliest = [list(zip(tokens, scores, strict=True)) for tokens, scores in pairs]
        rows, first = list[int](), 0
        for one in live:
            last = first + len(one.running)
            going_on = one.advance(likeliest[first:last])
            rows += [] if one.done else [first + row for row in going_on]
            first = last
        live = [one for one in live if not one.done]
        if not live:
            return [one.ended[0].tokens for one in beams]
        kept = torch.tensor(rows, device=logits.device)
        newest = torch.tensor([beam.tokens[-1] for one in live for beam in one.running], device=logits.device)
        if seen is not None:
            seen = seen[kept].scatter(1, newest[:, None], True)
        reader.select(kept)
        logits = reader.read(newest)
