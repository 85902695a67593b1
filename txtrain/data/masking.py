"""Masking: which tokens a masked language model must find, and what it sees in their place."""

from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from txtrain.data.packing import IGNORED
from txtrain.data.tokenizer import Tokenizer
from txtrain.data.words import Words

SPAN_WORDS = 10  # the longest span, in words
SPAN_CHANCE = 0.2  # of a span to end after each word

Unit = Literal["token", "word", "span"]
Tokens = NDArray[np.int64]


class Masker:
    """Chooses tokens and changes them, with a vocabulary.

    Args:
        tokenizer: whose vocabulary it is; it has a mask token.
        rate, unit, masked, random: as in `Masking`.
    """

    def __init__(self, tokenizer: Tokenizer, *, rate: float, unit: Unit, masked: float, random: float) -> None:
        self.rate, self.unit, self.masked, self.random = rate, unit, masked, random
        self.mask = tokenizer.special("mask")
        every = np.arange(tokenizer.vocab_size)
        self.maskable = ~np.isin(every, sorted(tokenizer.special_ids))
        self.ordinary = every[self.maskable]  # what a random token can be
        self._words = Words(tokenizer) if unit != "token" else None

    def __call__(self, tokens: Tokens, rng: np.random.Generator) -> tuple[Tokens, Tokens]:
        """tokens (T,), none of them padding → what the model sees and what it must find there, `IGNORED` elsewhere."""
        places = np.flatnonzero(self.maskable[tokens])
        # Rounded at random, so that short samples have the same share on average.
        budget = int(self.rate * len(places) + rng.random())
        units = self._units(tokens, places, budget, rng)
        chosen = np.concatenate([places[:0], *units])
        fate = rng.random(len(units)).repeat([len(unit) for unit in units])
        others = self.ordinary[rng.integers(len(self.ordinary), size=len(chosen))]
        inputs, targets = tokens.copy(), np.full_like(tokens, IGNORED)
        targets[chosen] = tokens[chosen]
        changed = np.where(fate < self.masked + self.random, others, tokens[chosen])
        inputs[chosen] = np.where(fate < self.masked, self.mask, changed)
        return inputs, targets

    def _units(self, tokens: Tokens, places: Tokens, budget: int, rng: np.random.Generator) -> list[Tokens]:
        """Places to choose, together at most `budget`; each unit has one fate."""
        if budget == 0:
            return []
        if self._words is None:
            return np.split(rng.permutation(places)[:budget], budget)
        begins = self._words.begin(tokens)[places] | (np.diff(places, prepend=-2) > 1)
        words = np.split(places, np.flatnonzero(begins)[1:])
        if self.unit == "span":
            return _spans(words, budget, rng)
        chosen = _fitting(words, rng.permutation(len(words)), budget)
        # Each token of a word has a fate of its own, as in BERT.
        return [place for word in chosen for place in np.split(word, len(word))]


def _fitting(words: list[Tokens], order: Tokens, budget: int) -> list[Tokens]:
    """Words in this order; one that is too long for what is left is passed over."""
    chosen = []
    for number in order:
        if len(words[number]) <= budget:
            chosen.append(words[number])
            budget -= len(words[number])
        if budget == 0:
            break
    return chosen


def _spans(words: list[Tokens], budget: int, rng: np.random.Generator) -> list[Tokens]:
    """Spans of neighbouring words, apart from each other; the last one is cut where the budget ends."""
    lengths = SPAN_CHANCE * (1 - SPAN_CHANCE) ** np.arange(SPAN_WORDS)
    edges = np.cumsum(lengths / lengths.sum())
    gap = np.array([after[0] - before[-1] > 1 for before, after in pairwise(words)], dtype=bool)
    free, spans = np.ones(len(words), dtype=bool), []
    while budget > 0:
        begin = rng.choice(np.flatnonzero(free))
        longest = begin + 1 + int(np.searchsorted(edges, rng.random(), side="right"))
        ends = np.flatnonzero(~free[begin + 1 : longest] | gap[begin : longest - 1])
        end = begin + 1 + int(ends[0]) if len(ends) else min(longest, len(words))
        free[begin:end] = False
        span = np.concatenate(words[begin:end])[:budget]
        budget -= len(span)
        spans.append(span)
    return spans
