"""SentencePiece's own search for the likeliest pieces, rounded as it rounds.

The `tokenizers` library searches alike and much faster, but in double precision, and so decides ties otherwise: ties
are where something is repeated, since `---` is `-` and `--` in two orders.
"""

import re
from array import array
from collections.abc import Mapping
from itertools import pairwise

REPEATED = re.compile(r"(.{1,12}?)\1\1", re.DOTALL)
UNKNOWN_PENALTY = 10.0


def may_tie(text: str) -> bool:
    """Whether there may be two ways to cut a text that are equally likely."""
    return REPEATED.search(text) is not None


class Unigram:
    """Cuts text into the likeliest pieces (https://arxiv.org/abs/1804.10959).

    Args:
        scores: log probability of each piece, float32.
    """

    def __init__(self, scores: Mapping[str, float]) -> None:
        self._scores = dict(scores)
        self._beginnings = {piece[:length] for piece in scores for length in range(1, len(piece))}
        self._unknown = array("f", [min(scores.values()) - UNKNOWN_PENALTY])[0]

    def cut(self, text: str) -> list[str]:
        """The pieces; neighbours that are unknown are one."""
        starts, known = self._search(text)
        ends = [len(text)]
        while ends[-1]:
            ends.append(starts[ends[-1]])
        pieces: list[str] = []
        joined = False
        for start, end in pairwise(reversed(ends)):
            if not known[end] and joined:
                pieces[-1] += text[start:end]
            else:
                pieces.append(text[start:end])
            joined = not known[end]
        return pieces

    def _search(self, text: str) -> tuple[list[int], list[bool]]:
        """Where the last piece of the likeliest ones up to each place starts, and whether it is a known one."""
        starts, known = [-1] * (len(text) + 1), [True] * (len(text) + 1)
        best, added = array("f", bytes(4 * len(starts))), array("f", [0.0])  # which round
        for start in range(len(text)):
            single = False
            for end in range(start + 1, len(text) + 1):
                piece = text[start:end]
                score = self._scores.get(piece)
                if score is not None:
                    single |= end == start + 1
                    added[0] = best[start] + score
                    if starts[end] < 0 or added[0] > best[end]:
                        best[end], starts[end], known[end] = added[0], start, True
                if piece not in self._beginnings:
                    break
            end, added[0] = start + 1, best[start] + self._unknown
            if not single and (starts[end] < 0 or added[0] > best[end]):
                best[end], starts[end], known[end] = added[0], start, False
        return starts, known
