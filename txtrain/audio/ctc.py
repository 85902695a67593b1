"""Connectionist temporal classification: from scores of every frame to a text."""

import math
from collections import defaultdict
from itertools import pairwise

from torch import Tensor


def greedy(logits: Tensor, lengths: Tensor, blank: int) -> list[list[int]]:
    """The likeliest token of each frame, repeats and blanks left out. logits (B, T, V), lengths (B,) → ids of each."""
    best = logits.argmax(-1).tolist()
    return [_collapsed(row[:length], blank) for row, length in zip(best, lengths.tolist(), strict=True)]


def beam_search(
    logits: Tensor, lengths: Tensor, blank: int, *, beams: int = 16, candidates: int = 24
) -> list[list[int]]:
    """Prefix beam search: the likeliest text, over all its alignments. logits (B, T, V), lengths (B,) → ids of each.

    Algorithm 1 of https://arxiv.org/abs/1408.2873 without a language model. With as many `beams` as there are prefixes
    it is exact.

    Args:
        beams: prefixes that are kept from one frame to the next.
        candidates: likeliest tokens of a frame that go on.
    """
    scores = logits.float().log_softmax(-1).cpu()
    tokens = scores.topk(min(candidates, scores.size(-1)), dim=-1)
    return [
        _beam_search(blanks[:length].tolist(), values[:length].tolist(), ids[:length].tolist(), blank, beams)
        for blanks, values, ids, length in zip(
            scores[..., blank], tokens.values, tokens.indices, lengths.tolist(), strict=True
        )
    ]


def frames_needed(ids: list[int]) -> int:
    """Frames that any alignment of these tokens has: one each, and a blank between two that are the same."""
    return len(ids) + sum(first == second for first, second in pairwise(ids))


def _collapsed(path: list[int], blank: int) -> list[int]:
    return [token for token, before in zip(path, [blank, *path], strict=False) if token not in (blank, before)]


def _beam_search(
    blanks: list[float], values: list[list[float]], ids: list[list[int]], blank: int, beams: int
) -> list[int]:
    """For one clip: log-probabilities of the blank (T,), and of the candidates and which they are, (T, candidates)."""
    # Of each prefix, the log-probability of all alignments that end in a blank, and of those that end in its token.
    kept: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for empty, frame_values, frame_ids in zip(blanks, values, ids, strict=True):
        after: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (in_blank, in_token) in kept.items():
            either = _log_sum(in_blank, in_token)
            after[prefix][0] = _log_sum(after[prefix][0], either + empty)
            for value, token in zip(frame_values, frame_ids, strict=True):
                if token == blank:
                    continue
                longer = (*prefix, token)
                if prefix and token == prefix[-1]:  # a repeat is the same token going on, unless a blank was between
                    after[prefix][1] = _log_sum(after[prefix][1], in_token + value)
                    after[longer][1] = _log_sum(after[longer][1], in_blank + value)
                else:
                    after[longer][1] = _log_sum(after[longer][1], either + value)
        likeliest = sorted(after.items(), key=lambda item: -_log_sum(*item[1]))[:beams]
        kept = {prefix: (in_blank, in_token) for prefix, (in_blank, in_token) in likeliest}
    return list(next(iter(kept)))


def _log_sum(a: float, b: float) -> float:
    high, low = (a, b) if a > b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
