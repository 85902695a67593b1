"""From vectors to scores over the vocabulary, and the loss on them."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from txtrain.model.cross_entropy import CrossEntropy
from txtrain.model.embed import Embedding, Input
from txtrain.model.ffn import ACTIVATIONS
from txtrain.model.norm.base import BASE_STD

IGNORED = -100

Scored = Literal["tokens", "labels of tokens", "labels", "nothing"]
LABELLING: tuple[Scored, ...] = ("labels", "labels of tokens")
"""Kinds of heads that are made for the labels of the data: a model that starts from another's weights has a new one
where the labels are others, and it trains in full beside adapters."""


class Head(nn.Module):
    """Scores of every token of the vocabulary.

    Args:
        embedding: whose matrix serves here too if it is tied.
        vocab_size: number of different tokens V.
        dim: width D.
        num_labels: not used; it is for heads that pool (`txtrain.model.pooling`).
        bias: whether a bias is added.
        scale: factor on the scores before the bias is added (T5's tied head has 1 / √D).
        soft_cap: scores become soft_cap · tanh(score / soft_cap) (https://arxiv.org/abs/2408.00118).
    """

    scores: ClassVar[Scored] = "tokens"

    def __init__(
        self,
        *,
        embedding: Input,
        vocab_size: int | None,
        dim: int,
        num_labels: int | None = None,
        bias: bool = False,
        scale: float = 1.0,
        soft_cap: float | None = None,
    ) -> None:
        super().__init__()
        if vocab_size is None:
            raise ValueError(
                "head=default and head=transform score the tokens of a vocabulary, and this task has none: set "
                "head=class_token or head=mean"
            )
        if soft_cap is not None and soft_cap <= 0:
            raise ValueError(f"head.soft_cap is {soft_cap}: give a positive number, such as head.soft_cap=30")
        self.scale, self.soft_cap = scale, soft_cap
        self.linear = nn.Linear(dim, vocab_size, bias=bias)
        if embedding.tied and isinstance(embedding, Embedding):
            self.linear.weight = embedding.tokens.weight
        else:
            nn.init.normal_(self.linear.weight, std=BASE_STD)
        if bias:
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """x (B, T, D) → (B, T, V); padding (B, T) makes no difference."""
        logits = self.linear(x * self.scale)
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


class TransformHead(Head):
    """Scores from norm(activation(W x + b)), the head of masked language models (https://arxiv.org/abs/1810.04805).

    Args:
        dim: width D.
        activation: the nonlinearity.
        norm_eps: added to the variance in the LayerNorm.
        rest: as in `Head`.
    """

    def __init__(
        self,
        *,
        dim: int,
        activation: Literal["relu", "gelu", "gelu_tanh", "silu"] = "gelu",
        norm_eps: float = 1e-5,
        **rest: Any,
    ) -> None:
        super().__init__(dim=dim, **rest)
        if norm_eps <= 0:
            raise ValueError(f"head.norm_eps is {norm_eps}: give a positive number, such as head.norm_eps=1e-5")
        self.transform = new_linear(dim, dim)
        self.activation = ACTIVATIONS[activation]
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """x (B, T, D) → (B, T, V)."""
        return super().forward(self.norm(self.activation(self.transform(x))))


class NoHead(nn.Module):
    """The vectors themselves: what an encoder without a head gives, such as those of sentences."""

    scores: ClassVar[Scored] = "nothing"

    def __init__(self, *, embedding: Input, vocab_size: int | None, dim: int, num_labels: int | None = None) -> None:
        super().__init__()

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """(B, T, D) → the same."""
        return x


class LabelHead(nn.Module):
    """Scores of the labels of each token: tags of words.

    Args:
        dim: width D.
        num_labels: number of different labels L.
        embedding, vocab_size: not used.
        dropout: probability of zeroing an element of what is scored.
    """

    scores: ClassVar[Scored] = "labels of tokens"

    def __init__(
        self,
        *,
        embedding: Input,
        dim: int,
        num_labels: int | None = None,
        vocab_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = new_linear(dim, check_labels(num_labels, dropout))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """x (B, T, D) → (B, T, L); padding (B, T) makes no difference."""
        return self.linear(self.dropout(x))


def check_labels(num_labels: int | None, dropout: float) -> int:
    """The number of labels, if there are some, and the dropout before their scores is one."""
    if num_labels is None:
        raise ValueError("this head scores labels, and the task has none: set head=default")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"head.dropout is {dropout}: give a probability below 1, such as head.dropout=0.1")
    return num_labels


def new_linear(size_in: int, size_out: int) -> nn.Linear:
    """Normal weights, zero biases."""
    linear = nn.Linear(size_in, size_out)
    nn.init.normal_(linear.weight, std=BASE_STD)
    nn.init.zeros_(linear.bias)
    return linear


class Loss:
    """Cross-entropy summed over valid targets, so that batches add up exactly however they are split.

    Args:
        label_smoothing: share of the probability spread over all tokens (https://arxiv.org/abs/1512.00567).
        z_loss: weight of log²(Σ exp logits), which keeps logits near zero (https://arxiv.org/abs/2204.02311).
        class_weights: of targets, by label; `balanced` makes them from how often each label is a target of training.
    """

    weights: Tensor | None = None
    """(L,), float64, once they are known; `balanced` weighs nothing before that."""

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        class_weights: Literal["balanced"] | list[float] | None = None,
    ) -> None:
        if not 0.0 <= label_smoothing < 1.0:
            raise ValueError(
                f"loss.label_smoothing is {label_smoothing}: give a share below 1, such as loss.label_smoothing=0.1"
            )
        if z_loss < 0.0:
            raise ValueError(f"loss.z_loss is {z_loss}: give 0 or more, such as loss.z_loss=1e-4")
        if class_weights is not None and label_smoothing:
            raise ValueError(
                f"loss.class_weights weighs each target, and loss.label_smoothing={label_smoothing} spreads it over "
                "all labels: set loss.label_smoothing=0"
            )
        if isinstance(class_weights, list) and not (class_weights and min(class_weights) > 0):
            raise ValueError(
                f"loss.class_weights is {class_weights}: give a positive number for each label, or "
                "loss.class_weights=balanced"
            )
        self.label_smoothing, self.z_loss, self.class_weights = label_smoothing, z_loss, class_weights

    def __call__(self, logits: Tensor, targets: Tensor, shares: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """logits (B, T, V), targets (B, T) → what to train on, in float32, and the plain cross-entropy, in float64.

        Both are sums over targets that are not `IGNORED`; class weights are in the first alone. With shares (B, T, K)
        the targets are (B, T, K), K at each place, and each counts by its share. The backward pass writes
        over the logits.
        """
        losses, entropy = self.of_each(logits, targets, shares)
        return losses.sum(), entropy.sum(dtype=widest_float(logits.device))

    def of_each(self, logits: Tensor, targets: Tensor, shares: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The same two of each place, (B · T,), in float32."""
        if shares is None:
            targets, shares = targets[..., None], torch.ones_like(targets[..., None])
        logits, targets, shares = (tensor.flatten(0, 1) for tensor in (logits, targets, shares))
        valid = targets != IGNORED
        targets, shares = targets.where(valid, 0), shares * valid
        if self.weights is None:
            return CrossEntropy.apply(logits, targets, shares, self.label_smoothing, self.z_loss)
        with torch.no_grad():
            plain = logits.float().logsumexp(-1, keepdim=True) - logits.gather(1, targets).float()
            entropy = (shares * plain).sum(1)
        weighted = shares * self.weights.to(shares.device, torch.float32)[targets]
        losses, _ = CrossEntropy.apply(logits, targets, weighted, self.label_smoothing, self.z_loss)
        return losses, entropy


def widest_float(device: torch.device) -> torch.dtype:
    """float64, but on Apple's GPUs, which do not have it."""
    return torch.float32 if device.type == "mps" else torch.float64
