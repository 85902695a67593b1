"""The loss on scores, and its gradient, which takes their place."""

import pytest
import torch
import torch.nn.functional as F

from txtrain.model import cross_entropy
from txtrain.model.head import Loss

VOCAB = 50


def test_loss_sums_over_valid_targets():
    """Against the definitions of cross-entropy, label smoothing and z-loss, in float64."""
    logits = torch.randn(2, 3, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.tensor([[1, -100, 3], [4, 5, -100]])
    log_z = logits.logsumexp(-1)
    smoothed = entropy = z = 0.0
    for row, column in [(0, 0), (0, 2), (1, 0), (1, 1)]:
        log_p = logits[row, column] - log_z[row, column]
        entropy -= log_p[targets[row, column]]
        smoothed -= 0.9 * log_p[targets[row, column]] + 0.1 * log_p.mean()
        z += log_z[row, column] ** 2
    objective, plain = Loss(label_smoothing=0.1, z_loss=0.01)(logits, targets)
    torch.testing.assert_close(plain.double(), entropy, rtol=1e-6, atol=0)
    torch.testing.assert_close(objective.double(), smoothed + 0.01 * z, rtol=1e-6, atol=0)


SMOOTHED = {"label_smoothing": 0.1, "z_loss": 0.01}


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.01}, SMOOTHED])
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_of_the_loss(monkeypatch, settings, several, dtype):
    """Against torch's own cross-entropy with probabilities, in float64; two rows of scores at a time."""
    monkeypatch.setitem(cross_entropy.AT_A_TIME, "cpu", 2 * VOCAB)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, VOCAB, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCAB, (2, 5, 1 + several), generator=generator)
    targets[0, 3] = targets[1, 2] = -100
    shares = torch.rand(2, 5, 2, generator=generator) if several else None
    weights = (targets != -100).double() * (1 if shares is None else shares.double())
    wanted = (weights[..., None] * F.one_hot(targets.clamp_min(0), VOCAB)).sum(2)

    exact = logits.detach().double().requires_grad_()
    smoothing = settings.get("label_smoothing", 0.0)
    expected = F.cross_entropy(exact.flatten(0, 1), wanted.flatten(0, 1), reduction="sum", label_smoothing=smoothing)
    # torch smooths rows that sum to one: of others, and of those without a target, what is missing is added.
    rest = smoothing * ((wanted.sum(-1) - 1)[..., None] * -exact.log_softmax(-1)).mean(-1).sum()
    z = settings.get("z_loss", 0.0) * (wanted.sum(-1) * exact.logsumexp(-1).square()).sum()
    (expected + rest + z).backward()

    objective, _ = Loss(**settings)(1 * logits, targets if several else targets[..., 0], shares)
    (3 * objective).backward()
    assert objective.dtype == torch.float32
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(objective.double(), expected + rest + z, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits.grad.double(), 3 * exact.grad, rtol=tolerance, atol=tolerance)


def test_scores_that_the_gradient_has_overwritten_are_not_used_again():
    logits = torch.randn(1, 3, VOCAB, requires_grad=True)
    scores = 1 * logits
    targets = torch.tensor([[1, 2, 3]])
    twice = sum(Loss()(scores, targets)[0] for _ in range(2))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        twice.backward()


def test_no_target_at_all_has_no_loss():
    logits = torch.zeros(1, 0, VOCAB, requires_grad=True)
    objective, entropy = Loss()(1 * logits, torch.zeros(1, 0, dtype=torch.long))
    objective.backward()
    assert objective == entropy == 0
    assert logits.grad.shape == logits.shape
