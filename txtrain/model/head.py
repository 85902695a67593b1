"""From vectors to scores over the vocabulary, and the loss on them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txtrain.model.embed import Embedding

IGNORED = -100


class Head(nn.Module):
    """Scores of every token of the vocabulary.

    Args:
        embedding: whose matrix serves here too if it is tied.
        vocab_size: number of different tokens V.
        dim: width D.
        bias: whether a bias is added.
        soft_cap: scores become soft_cap · tanh(score / soft_cap) (https://arxiv.org/abs/2408.00118).
    """

    def __init__(
        self, *, embedding: Embedding, vocab_size: int, dim: int, bias: bool = False, soft_cap: float | None = None
    ) -> None:
        super().__init__()
        if soft_cap is not None and soft_cap <= 0:
            raise ValueError(f"head.soft_cap is {soft_cap}: give a positive number, such as head.soft_cap=30")
        self.soft_cap = soft_cap
        self.linear = nn.Linear(dim, vocab_size, bias=bias)
        if embedding.tied:
            self.linear.weight = embedding.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → (B, T, V)."""
        logits = self.linear(x)
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


class Loss:
    """Cross-entropy summed over valid targets, so that batches add up exactly however they are split.

    Args:
        label_smoothing: share of the probability spread over all tokens (https://arxiv.org/abs/1512.00567).
        z_loss: weight of log²(Σ exp logits), which keeps logits near zero (https://arxiv.org/abs/2204.02311).
    """

    def __init__(self, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(
                f"loss.label_smoothing is {label_smoothing}: give a share below 1, such as loss.label_smoothing=0.1"
            )
        if z_loss < 0.0:
            raise ValueError(f"loss.z_loss is {z_loss}: give 0 or more, such as loss.z_loss=1e-4")
        self.label_smoothing, self.z_loss = label_smoothing, z_loss

    def __call__(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """logits (B, T, V), targets (B, T) → what to train on, in float32, and the plain cross-entropy, in float64.

        Both are sums.
        """
        logits, targets = logits.flatten(0, 1).float(), targets.flatten()
        entropy = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        objective = entropy.sum()
        if self.label_smoothing:
            objective = F.cross_entropy(
                logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=self.label_smoothing
            )
        if self.z_loss:
            valid = targets != IGNORED
            objective = objective + self.z_loss * (logits.logsumexp(-1).square() * valid).sum()
        return objective, entropy.detach().sum(dtype=widest_float(logits.device))


def widest_float(device: torch.device) -> torch.dtype:
    """float64, but on Apple's GPUs, which do not have it."""
    return torch.float32 if device.type == "mps" else torch.float64
