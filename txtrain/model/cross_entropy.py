"""Cross-entropy in which the gradient takes the place of the scores, so that one tensor is large and not three."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Scores that are worked on at a time: on a CPU what its cache holds, on other devices what keeps them busy.
AT_A_TIME = {"cpu": 1 << 19}
AT_A_TIME_ELSEWHERE = 1 << 25


class CrossEntropy(torch.autograd.Function):
    """Cross-entropy of rows of scores against targets that each have a weight.

    With x a row of scores, L = log Σ exp x, targets t of weights w, label smoothing ε over V scores and weight z of the
    z-loss, a row gives Σ w [L − (1 − ε) x_t − ε mean(x) + z L²]; its gradient is
    W (1 + 2 z L) softmax(x) − (1 − ε) Σ w onehot(t) − ε W / V, with W = Σ w.

    The backward pass writes this over the scores: nobody else may need them for a gradient (autograd refuses it).
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, targets: Tensor, weights: Tensor, smoothing: float, z_loss: float
    ) -> tuple[Tensor, Tensor]:
        """scores (N, V), targets and weights (N, K) → what to train on and the plain cross-entropy (N,), which has no
        gradient; in float32 at least."""
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = weights.to(wide)
        total = weights.sum(1)
        log, mean = torch.empty_like(total), torch.zeros_like(total)
        for rows in _parts(scores):
            part = scores[rows].to(wide)
            log[rows] = part.logsumexp(1)
            if smoothing:
                mean[rows] = part.mean(1)
        entropy = (weights * (log[:, None] - scores.gather(1, targets).to(wide))).sum(1)
        losses = (1 - smoothing) * entropy + total * (smoothing * (log - mean) + z_loss * log.square())
        ctx.save_for_backward(scores, targets, weights, log)
        ctx.smoothing, ctx.z_loss = smoothing, z_loss
        ctx.mark_non_differentiable(entropy)
        return losses, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        scores, targets, weights, log = ctx.saved_tensors
        weights = weights * grad[:, None]
        total = weights.sum(1)
        factor = (total * (1 + 2 * ctx.z_loss * log))[:, None]
        for rows in _parts(scores):
            part = scores[rows].to(log.dtype)  # itself, if it is as wide
            part.sub_(log[rows, None]).exp_().mul_(factor[rows])
            part.scatter_add_(1, targets[rows], (ctx.smoothing - 1) * weights[rows])
            if ctx.smoothing:
                part.sub_(ctx.smoothing / scores.size(1) * total[rows, None])
            if part.dtype != scores.dtype:
                scores[rows] = part
        return scores.detach(), None, None, None, None


def _parts(scores: Tensor) -> Iterator[slice]:
    """Rows, as many at a time as are to be worked on."""
    step = max(1, AT_A_TIME.get(scores.device.type, AT_A_TIME_ELSEWHERE) // scores.size(1))
    return (slice(start, start + step) for start in range(0, len(scores), step))
