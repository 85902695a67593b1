"""From the vectors of a sequence to the scores of its labels."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from txtrain.model.embed import Input
from txtrain.model.ffn import ACTIVATIONS
from txtrain.model.head import Scored, check_labels, new_linear


class PoolingHead(nn.Module):
    """Scores of the labels of a whole sequence: of an image, a text, a sound.

    Args:
        embedding: whose class token, if it has one, comes first.
        dim: width D.
        num_labels: number of different labels L.
        vocab_size: not used.
        pool: the vector of the `first` token (a class token; BERT's [CLS]), or the `mean` of all real tokens but those
            before a grid.
        transform: activation of a linear layer before the scores (BERT's pooler: tanh); None: there is no such layer.
        dropout: probability of zeroing an element of what is scored.
    """

    scores: ClassVar[Scored] = "labels"

    def __init__(
        self,
        *,
        embedding: Input,
        dim: int,
        num_labels: int | None = None,
        vocab_size: int | None = None,
        pool: Literal["first", "mean"] = "first",
        transform: Literal["tanh", "relu", "gelu"] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.prefix = embedding.grid.prefix if embedding.grid is not None else 0
        if pool == "first" and embedding.grid is not None and not self.prefix:
            raise ValueError(
                "head.pool=first is the class token's vector, and embedding.class_token=false: set head=mean"
            )
        self.pool = pool
        self.transform = new_linear(dim, dim) if transform else None
        self.activation = torch.tanh if transform in (None, "tanh") else ACTIVATIONS[transform]
        self.dropout = nn.Dropout(dropout)
        self.linear = new_linear(dim, check_labels(num_labels, dropout))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """x (B, T, D), padding (B, T), True for real tokens → (B, L)."""
        x = x[:, 0] if self.pool == "first" else self._mean(x, padding)
        if self.transform is not None:
            x = self.activation(self.transform(x))
        return self.linear(self.dropout(x))

    def _mean(self, x: Tensor, padding: Tensor | None) -> Tensor:
        x = x[:, self.prefix :]
        if padding is None:
            return x.mean(1)
        real = padding[:, self.prefix :, None].to(x.dtype)
        return (x * real).sum(1) / real.sum(1).clamp(min=1)


class TokenMeanHead(nn.Module):
    """Scores of labels from the normalised mean of the vectors before a grid, of the class token and of the
    distillation token where there is one (AST, https://arxiv.org/abs/2104.01778).

    Args:
        embedding: whose tokens before the grid are averaged.
        dim: width D.
        num_labels: number of different labels L.
        vocab_size: not used.
        norm_eps: added to the variance in the LayerNorm.
        dropout: probability of zeroing an element of what is scored.
    """

    scores: ClassVar[Scored] = "labels"

    def __init__(
        self,
        *,
        embedding: Input,
        dim: int,
        num_labels: int | None = None,
        vocab_size: int | None = None,
        norm_eps: float = 1e-5,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.prefix = embedding.grid.prefix if embedding.grid is not None else 0
        if not self.prefix:
            raise ValueError(
                "head=token_mean scores the mean of the class and distillation tokens, and there is none: set "
                "embedding.class_token=true, or head=mean where there are no patches"
            )
        if norm_eps <= 0:
            raise ValueError(f"head.norm_eps is {norm_eps}: give a positive number, such as head.norm_eps=1e-5")
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.linear = new_linear(dim, check_labels(num_labels, dropout))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """x (B, T, D) → (B, L); padding (B, T) makes no difference."""
        return self.linear(self.dropout(self.norm(x[:, : self.prefix].mean(1))))


class DistilledHead(PoolingHead):
    """The mean of two scores, of the class token and of the distillation token (https://arxiv.org/abs/2012.12877).

    Args:
        embedding, dim, num_labels, vocab_size, dropout: as in `PoolingHead`.
    """

    def __init__(
        self,
        *,
        embedding: Input,
        dim: int,
        num_labels: int | None = None,
        vocab_size: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(embedding=embedding, dim=dim, num_labels=num_labels, dropout=dropout)
        if self.prefix < 2:
            raise ValueError(
                "head=distilled scores a distillation token, and there is none: set embedding.distillation_token=true"
            )
        assert num_labels is not None
        self.distillation = new_linear(dim, num_labels)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """x (B, T, D) → (B, L)."""
        return (super().forward(x, padding) + self.distillation(self.dropout(x[:, 1]))) / 2
