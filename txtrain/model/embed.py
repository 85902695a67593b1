"""From token numbers to vectors, and what all have in common that makes vectors of a model's input."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from txtrain.model.grid import Grid
from txtrain.model.init import initialise_embedding


class Input(nn.Module, ABC):
    """The first layer of a model: a sequence of vectors (B, T, D) of whatever it reads.

    Attributes:
        grid: where these vectors stand, if not in a row.
        tied: whether the head uses the same matrix.
        shared: whether encoder and decoder have the same vectors.
    """

    grid: Grid | None = None
    tied: bool = False
    shared: bool = True

    @property
    def max_len(self) -> int | None:
        """Vectors of the longest input in training, where this is what knows it."""
        return None if self.grid is None else self.grid.length

    @abstractmethod
    def initialise(self) -> None:
        """Draws the initial weights."""

    @abstractmethod
    def positions(self, inputs: Tensor) -> Tensor:
        """Where the vectors of inputs stand: (1, T), or (1, T, axes) on a grid."""

    @abstractmethod
    def forward(self, inputs: Tensor, add_positions: Callable[[Tensor], Tensor], types: Tensor | None = None) -> Tensor:
        """inputs (B, ...) → (B, T, D); `add_positions` maps (B, T, D) → (B, T, D)."""


class Embedding(Input):
    """Token vectors, then positions, then an optional norm, then dropout.

    Args:
        dim: width D.
        vocab_size: number of different tokens V.
        dropout: probability of zeroing an element.
        tied: whether the head uses the same matrix (https://arxiv.org/abs/1608.05859).
        scale: whether token vectors are multiplied by √D (https://arxiv.org/abs/1706.03762). Default: they are not; a
            config that leaves it out has what the encoding's paper has (`Encoding.scales_embedding`).
        norm: whether a LayerNorm follows (BERT, BLOOM).
        norm_eps: added to its variance.
        token_types: number of segment types whose vectors are added (BERT has 2).
        shared: whether encoder and decoder have the same token vectors (T5, BART).
    """

    def __init__(
        self,
        *,
        dim: int,
        vocab_size: int | None,
        dropout: float = 0.0,
        tied: bool = True,
        scale: bool | None = None,
        norm: bool = False,
        norm_eps: float = 1e-5,
        token_types: int = 0,
        shared: bool = True,
    ) -> None:
        super().__init__()
        if vocab_size is None:
            raise ValueError("embedding=default reads tokens, and this task has none: set embedding=patches for images")
        if norm_eps <= 0:
            raise ValueError(
                f"embedding.norm_eps is {norm_eps}: give a positive number, such as embedding.norm_eps=1e-5"
            )
        self.tied, self.shared = tied, shared
        self.scale = dim**0.5 if scale else 1.0
        self.tokens = nn.Embedding(vocab_size, dim)
        self.types = nn.Embedding(token_types, dim) if token_types else None
        self.norm = nn.LayerNorm(dim, eps=norm_eps) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def initialise(self) -> None:
        initialise_embedding(self.tokens, self.scale)
        if self.types is not None:
            initialise_embedding(self.types)

    def positions(self, inputs: Tensor) -> Tensor:
        """tokens (B, T) → (1, T), counted from 0."""
        return torch.arange(inputs.size(1), device=inputs.device)[None]

    def forward(self, inputs: Tensor, add_positions: Callable[[Tensor], Tensor], types: Tensor | None = None) -> Tensor:
        """tokens and types (B, T) → (B, T, D); `add_positions` maps (B, T, D) → (B, T, D)."""
        x = self.tokens(inputs) * self.scale
        if self.types is not None:
            one = types is None or self.types.num_embeddings == 1  # as in RoBERTa
            x = x + self.types(inputs.new_zeros(inputs.shape) if one else types)
        return self.dropout(self.norm(add_positions(x)))
