"""From token numbers to vectors."""

from collections.abc import Callable

from torch import Tensor, nn


class Embedding(nn.Module):
    """Token vectors, then positions, then an optional norm, then dropout.

    Args:
        vocab_size: number of different tokens V.
        dim: width D.
        dropout: probability of zeroing an element.
        tied: whether the head uses the same matrix (https://arxiv.org/abs/1608.05859).
        scale: whether token vectors are multiplied by √D (https://arxiv.org/abs/1706.03762).
        norm: whether a LayerNorm follows (BERT, BLOOM).
        norm_eps: added to its variance.
        token_types: number of segment types whose vectors are added (BERT has 2).
        shared: whether encoder and decoder have the same token vectors (T5, BART).
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        dim: int,
        dropout: float = 0.0,
        tied: bool = True,
        scale: bool = False,
        norm: bool = False,
        norm_eps: float = 1e-5,
        token_types: int = 0,
        shared: bool = True,
    ) -> None:
        super().__init__()
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

    def forward(self, tokens: Tensor, add_positions: Callable[[Tensor], Tensor], types: Tensor | None = None) -> Tensor:
        """tokens and types (B, T) → (B, T, D); `add_positions` maps (B, T, D) → (B, T, D)."""
        x = self.tokens(tokens) * self.scale
        if self.types is not None:
            x = x + self.types(tokens.new_zeros(tokens.shape) if types is None else types)
        return self.dropout(self.norm(add_positions(x)))
