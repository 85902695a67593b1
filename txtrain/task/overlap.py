"""BLEU and chrF by sacrebleu, from counts that can be added up."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from txtrain.errors import UserError


class Overlap:
    """Counts of n-grams that translations and references share, and the two measures that are made of them.

    BLEU (https://aclanthology.org/P02-1040) and chrF (https://aclanthology.org/W15-3049) of a set are functions of sums
    over its sentences, so the sums of parts give exactly what sacrebleu says of the whole.

    Args:
        tokenize: sacrebleu's tokenizer for BLEU.
    """

    def __init__(self, *, tokenize: str = "13a") -> None:
        try:
            metrics: Any = importlib.import_module("sacrebleu.metrics")
        except ImportError:
            raise UserError(
                "task=translation measures with sacrebleu, which is not installed: pip install 'txtrain[tasks]'"
            ) from None
        if tokenize not in metrics.BLEU.TOKENIZERS:
            known = ", ".join(metrics.BLEU.TOKENIZERS)
            raise UserError(f"task.bleu_tokenize={tokenize} is unknown to sacrebleu: set it to one of {known}")
        self.metrics = {"bleu": metrics.BLEU(tokenize=tokenize), "chrf": metrics.CHRF()}
        self.sizes = {name: len(self._statistics(name, [""], [""])[0]) for name in self.metrics}

    def counts(self, translations: Sequence[str], references: Sequence[str]) -> dict[str, Tensor]:
        """Of each measure its counts (N,), int64, summed over the sentences; all 0 without any."""
        found = {}
        for name, size in self.sizes.items():
            rows = self._statistics(name, translations, references) if translations else []
            found[name] = torch.tensor(rows, dtype=torch.int64).reshape(-1, size).sum(0)
        return found

    def scores(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The measures, from 0 to 100."""
        return {
            name: float(metric._compute_score_from_stats(sums[name].tolist()).score)
            for name, metric in self.metrics.items()
        }

    def _statistics(self, name: str, translations: Sequence[str], references: Sequence[str]) -> list[list[int]]:
        rows: list[list[int]] = self.metrics[name]._extract_corpus_statistics(list(translations), [list(references)])
        return rows
