"""Decoding against the sum over all alignments, and CTC's loss."""

import itertools
import math
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F

from txtrain.audio.ctc import beam_search, frames_needed, greedy


def every_text(scores: torch.Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """Probabilities of all texts, by going through all alignments. scores (T, V)."""
    totals: dict[tuple[int, ...], float] = defaultdict(float)
    for path in itertools.product(range(scores.size(1)), repeat=len(scores)):
        text = tuple(token for token, _ in itertools.groupby(path) if token != blank)
        totals[text] += math.exp(sum(scores[frame, token].item() for frame, token in enumerate(path)))
    return totals


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("blank", [0, 3])
def test_beam_search_finds_the_likeliest_text(seed, blank):
    logits = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([6, 4])
    found = beam_search(logits, lengths, blank, beams=10_000)
    for row, length in enumerate(lengths.tolist()):
        totals = every_text(logits[row, :length].log_softmax(-1), blank)
        best = max(totals, key=totals.__getitem__)
        assert tuple(found[row]) == best
        # The same probability by torch's loss, which knows nothing of prefixes.
        if best:
            loss = F.ctc_loss(
                logits[row, :length].log_softmax(-1),
                torch.tensor(best),
                torch.tensor(length),
                torch.tensor(len(best)),
                blank=blank,
                reduction="none",
            )
            assert math.exp(-loss.item()) == pytest.approx(totals[best], rel=1e-4)


def test_beam_search_may_differ_from_greedy():
    # The likeliest alignment is blank, blank; the likeliest text is 1, which has three alignments.
    logits = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    assert greedy(logits, torch.tensor([2]), 0) == [[]]
    assert beam_search(logits, torch.tensor([2]), 0) == [[1]]


def test_greedy_leaves_out_repeats_and_blanks_and_what_is_behind_the_end():
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 0, 3], [0, 2, 2, 2, 3, 3, 3, 3]])
    logits = F.one_hot(path, 4).float()
    assert greedy(logits, torch.tensor([8, 4]), 0) == [[1, 1, 2, 3], [2]]
    assert beam_search(50 * logits, torch.tensor([8, 4]), 0) == [[1, 1, 2, 3], [2]]


@pytest.mark.parametrize("ids", [[1], [1, 1], [1, 2, 2, 2, 1], [3, 3, 1, 1]])
def test_a_text_needs_as_many_frames_as_its_loss_is_finite_from(ids):
    def loss(frames: int) -> float:
        scores = torch.zeros(frames, 4).log_softmax(-1)
        sizes = torch.tensor(frames), torch.tensor(len(ids))
        return F.ctc_loss(scores, torch.tensor(ids), *sizes, blank=0, reduction="none").item()

    needed = frames_needed(ids)
    assert math.isfinite(loss(needed))
    if needed > 1:
        assert math.isinf(loss(needed - 1))
