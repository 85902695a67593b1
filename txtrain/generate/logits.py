"""Changes of next-token logits (B, V) before a token is taken, each a pure function; as in transformers."""

import math

import torch
from torch import Tensor


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores of tokens that were `seen` (B, V) become less by this factor (https://arxiv.org/abs/1909.05858)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """The k likeliest tokens, and what is as likely as the last of them; -∞ elsewhere."""
    least = logits.topk(min(k, logits.size(-1))).values[:, -1:]
    return logits.masked_fill(logits < least, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens whose probabilities add up to p (https://arxiv.org/abs/1904.09751)."""
    ascending, order = logits.sort()
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - p
    dropped[:, -1] = False
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -math.inf)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the likeliest (https://arxiv.org/abs/2407.01082)."""
    probabilities = logits.softmax(-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(-1, keepdim=True), -math.inf)
