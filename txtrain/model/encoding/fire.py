"""A bias that a small network makes of the relative distance."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txtrain.model.encoding.base import Encoding
from txtrain.model.shape import Stack


class Fire(Encoding):
    """FIRE (https://arxiv.org/abs/2310.04418): bias f(ψ(i - j) / ψ(max(i, L))), ψ(x) = log(c·x + 1).

    f is a network 1 → width → H with a ReLU, c and L are learned, all layers share them. Distance relative to the
    query's position stays in [0, 1] however long the sequence is. The formula is for decoders: in an encoder the ratio
    is to ψ(max(i, j, L)) here and carries the sign of i - j, so that f can tell sides apart.

    The bias depends on absolute positions and on a network, so it has no elementwise rule.

    Args:
        stack: what it serves.
        width: of the network's hidden layer.
        c: where ψ starts between linear and logarithmic.
        threshold: L at the start. Default: a quarter of the training length (the paper has 512 for 2048).
    """

    def __init__(self, *, stack: Stack, width: int = 32, c: float = 0.1, threshold: float | None = None) -> None:
        super().__init__(stack=stack)
        if width < 1:
            raise ValueError(f"encoding.width is {width}: give at least 1, such as encoding.width=32")
        if c <= 0:
            raise ValueError(f"encoding.c is {c}: give a positive number, such as encoding.c=0.1")
        if threshold is not None and threshold <= 0:
            raise ValueError(
                f"encoding.threshold is {threshold}: give a positive number of tokens, such as encoding.threshold=512"
            )
        self.hidden = nn.Linear(1, width)
        self.out = nn.Linear(width, stack.num_heads)
        self.c = nn.Parameter(torch.tensor([c]))  # (1,), since DeepSpeed cannot shard a scalar
        # A factor on the start, as in the paper, since a step of the optimizer is far too small for L itself.
        self.start = threshold or max(1.0, stack.max_len / 4)
        self.threshold = nn.Parameter(torch.ones(1))

    @property
    def has_bias(self) -> bool:
        return True

    def bias(self, q_positions: Tensor, k_positions: Tensor) -> Tensor:
        # Autocast would round distances to bfloat16; it knows no meta device.
        device = "cpu" if q_positions.is_meta else q_positions.device.type
        with torch.autocast(device, enabled=False):
            ratio = self._ratio(q_positions[:, :, None], k_positions[:, None, :])
            hidden = F.relu(self.hidden.weight.float() * ratio.flatten() + self.hidden.bias.float()[:, None])
            values = torch.addmm(self.out.bias.float()[:, None], self.out.weight.float(), hidden)
        return values.unflatten(1, ratio.shape).transpose(0, 1)

    def _ratio(self, q: Tensor, k: Tensor) -> Tensor:
        """ψ(|i - j|) / ψ(max(i, j, L)) with the sign of i - j, for positions that broadcast."""
        c = self.c.float().abs()
        ahead = (k - q).sign().clamp(max=0) if self.stack.causal else (k - q).sign()
        normaliser = torch.maximum(torch.maximum(q, k).float(), (self.threshold.float() * self.start).abs())
        return -ahead * torch.log1p(c * (q - k).abs()) / (torch.log1p(c * normaliser) + 1e-6)
