"""Which keys a query may see, as one rule that every attention kernel reads."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Mask:
    """The rule by which queries see keys. Conditions that are absent cost nothing; those present all hold.

    Queries have the last Q of the K keys' indices (with a cache Q < K). Indices count tokens of the sequence, while
    positions restart at each document.

    Args:
        causal: a query sees keys up to its own index.
        documents: (B, K) a query sees keys with the same number only.
        padding: (B, K) True for keys that are real tokens.
    """

    causal: bool
    documents: Tensor | None = None
    padding: Tensor | None = None

    @property
    def rows(self) -> int:
        """B, or 1 when all sequences of the batch are masked alike."""
        return next((len(tensor) for tensor in (self.documents, self.padding) if tensor is not None), 1)

    def is_dense(self, window: int | None) -> bool:
        """Whether more than causality restricts what is seen."""
        return window is not None or self.documents is not None or self.padding is not None

    def last(self, num_keys: int) -> "Mask":
        """The same without the keys before the last `num_keys`."""
        documents, padding = (None if x is None else x[:, -num_keys:] for x in (self.documents, self.padding))
        return Mask(causal=self.causal, documents=documents, padding=padding)

    def allows(self, batch: Tensor, query: Tensor, key: Tensor, window: int | None) -> Tensor:
        """Whether `query` sees `key`, elementwise over integer index tensors that broadcast.

        A sliding window (https://arxiv.org/abs/2004.05150) admits distances below it, on both sides if not causal.
        """
        seen = (key <= query) if self.causal else (key == key)
        if window is not None:
            seen = seen & ((query - key).abs() < window)
        if self.documents is not None:
            seen = seen & (self.documents[batch, query] == self.documents[batch, key])
        if self.padding is not None:
            seen = seen & self.padding[batch, key]
        return seen

    def dense(self, window: int | None, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
        """The whole rule as booleans (B or 1, 1, Q, K)."""
        batch = torch.arange(self.rows, device=device)[:, None, None]
        query = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
        key = torch.arange(num_keys, device=device)
        return self.allows(batch, query, key, window).broadcast_to(self.rows, num_queries, num_keys)[:, None]
