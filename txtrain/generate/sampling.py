"""How the next token is taken from the logits: the likeliest, or one drawn among the likelier ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from txtrain.generate.logits import keep_min_p, keep_top_k, keep_top_p, penalize_repetition


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Repetition penalty, temperature, top-k, top-p and min-p, in this order (transformers' order).

    Args:
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: draw among this many likeliest tokens.
        top_p: draw among the fewest likeliest tokens with this share of the probability.
        min_p: draw among tokens with at least this share of the likeliest one's probability.
        repetition_penalty: factor by which tokens that are there already, in the prompt too, are less likely.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature is {self.temperature}: give 0 or more, such as --temperature 0.8")
        if 0 < self.temperature < 1e-4 or self.temperature == math.inf:
            raise ValueError(f"temperature is {self.temperature}: give 0 for the likeliest token, or 0.0001 or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top-k is {self.top_k}: give 1 or more, such as --top-k 50")
        for name, share, example in (("top-p", self.top_p, 0.9), ("min-p", self.min_p, 0.05)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} is {share}: give a share above 0 and up to 1, such as --{name} {example}")
        if not self.repetition_penalty > 0:
            raise ValueError(
                f"repetition penalty is {self.repetition_penalty}: give more than 0, such as --repetition-penalty 1.1"
            )

    @property
    def draws(self) -> bool:
        """Whether random numbers decide."""
        return self.temperature > 0

    def penalized(self, logits: Tensor, seen: Tensor | None) -> Tensor:
        """Logits (B, V) with the repetition penalty."""
        return logits if seen is None else penalize_repetition(logits, seen, self.repetition_penalty)

    def take(self, logits: Tensor, seen: Tensor | None, generators: Sequence[torch.Generator]) -> Tensor:
        """A token for each row: logits (B, V) → (B,).

        Args:
            logits: in any floating type.
            seen: (B, V) tokens that are there already; None without a repetition penalty.
            generators: one for each row, so that no row depends on what it is batched with.
        """
        logits = self.penalized(logits.float(), seen)
        if not self.draws:
            return logits.argmax(-1)
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        rows = logits.softmax(-1)
        drawn = [torch.multinomial(row, 1, generator=own) for row, own in zip(rows, generators, strict=True)]
        return torch.cat(drawn)

    def new_seen(self, prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device) -> Tensor | None:
        """(B, V) which tokens the prompts have, if that matters."""
        if self.repetition_penalty == 1:
            return None
        seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
        for row, prompt in zip(seen, prompts, strict=True):
            row[torch.tensor(prompt, device=device)] = True
        return seen
