"""Layers with an adapter: a frozen matrix and a trained low-rank change of it."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txtrain.model.lora import nf4
from txtrain.model.lora.initial import Init, principal


class Adapted(nn.Module):
    """A layer whose matrix W (out, in) is frozen, and a trained low-rank change of it (https://arxiv.org/abs/2106.09685).

    W + s · B A, with A (r, in) and B (out, r). B starts at zero, so the layer starts unchanged; or B A starts as the
    main part of W, which is then taken out of W (`init`). Weight and bias are the given layer's own parameters, under
    the same names.

    Attributes:
        scale: s.
        dropout: probability of zeroing an element of the adapter's input.
        b_lr_ratio: learning rate of B as a multiple of A's (https://arxiv.org/abs/2402.12354).
        original: the weight without the adapter, while it is merged.
    """

    weight: Tensor
    transposed = False  # whether the weight is stored as (in, out)

    def _adapt(
        self, layer: nn.Linear | nn.Embedding, *, rank: int, scale: float, dropout: float, b_lr_ratio: float
    ) -> None:
        """Takes over the parameters of a layer, frozen, and makes A and B."""
        for name, parameter in layer.named_parameters(recurse=False):
            setattr(self, name, parameter.requires_grad_(False))
        self.scale, self.dropout, self.b_lr_ratio = scale, dropout, b_lr_ratio
        self.original: Tensor | None = None
        size_out, size_in = self.matrix.shape
        self.lora_A = nn.Parameter(self.weight.new_empty(rank, size_in))
        self.lora_B = nn.Parameter(self.weight.new_zeros(size_out, rank))

    def _start(self, init: Init) -> None:
        """A and B at their start; what B A then is is taken out of W and kept, to tell later what was learned."""
        if init == "kaiming":
            self.draw(self.lora_A, self.lora_B)
            return
        with torch.no_grad():
            low, high = principal(self.matrix, len(self.lora_A), self.scale, init)
            self.lora_A.copy_(low)
            self.lora_B.copy_(high)
            self.lora_A0 = nn.Parameter(self.lora_A.clone(), requires_grad=False)
            self.lora_B0 = nn.Parameter(self.lora_B.clone(), requires_grad=False)
            rest = self.weight.to(self._wide) - self.change(self.lora_A0, self.lora_B0)
            self.weight.data = rest.to(self.weight.dtype)

    def draw(self, low: Tensor, high: Tensor, generator: torch.Generator | None = None) -> None:
        """Fills A uniformly within ±1/√in, as PEFT's, and B with zeros."""
        nn.init.kaiming_uniform_(low, a=5**0.5, generator=generator)
        nn.init.zeros_(high)

    def hold_base_in(self, dtype: torch.dtype) -> None:
        """Stores weight and bias in another type than the adapter's."""
        self.weight.data = self.weight.data.to(dtype)
        if getattr(self, "bias", None) is not None:
            self.bias.data = self.bias.data.to(dtype)

    @property
    def whole_weight(self) -> Tensor:
        """The weight as numbers, however it is held."""
        return self.weight

    @property
    def matrix(self) -> Tensor:
        """W (out, in)."""
        return self.whole_weight.T if self.transposed else self.whole_weight

    def change(self, low: Tensor, high: Tensor) -> Tensor:
        """s · B A, laid out as the weight is, of A and B whole and in float32 at least."""
        low, high = low.to(self._wide), high.to(self._wide)
        return self.scale * (low.T @ high.T if self.transposed else high @ low)

    def merged_weight(self) -> Tensor:
        """The weight with the adapter in it, in float32 at least."""
        return self.whole_weight.to(self._wide) + self.change(self.lora_A, self.lora_B)

    def merge(self) -> None:
        """Puts the adapter into the weight, for generation and export: not to be trained or saved in this state."""
        assert self.original is None, "merged already"
        with torch.no_grad(), self._without_autocast():
            merged = self.merged_weight()
            self.original = self.weight.data
            self.weight.data = merged.to(self.weight.dtype if self.weight.is_floating_point() else self.lora_A.dtype)

    def unmerge(self) -> None:
        """Puts back the very weight that was there; subtracting would leave rounding errors."""
        assert self.original is not None, "not merged"
        self.weight.data, self.original = self.original, None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={len(self.lora_A)}, scale={self.scale:g}, dropout={self.dropout}"

    @property
    def _wide(self) -> torch.dtype:
        return torch.promote_types(self.weight.dtype, torch.float32)

    def _without_autocast(self) -> AbstractContextManager[None]:
        device = self.weight.device.type
        return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class LoRALinear(Adapted, nn.Linear):
    """y = W x + b + s · B A dropout(x).

    Args:
        linear: the layer to adapt.
        rank: r.
        scale, dropout, b_lr_ratio: as in `Adapted`.
        init: how A and B start.
    """

    def __init__(
        self,
        linear: nn.Linear,
        *,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        b_lr_ratio: float = 1.0,
        init: Init = "kaiming",
    ) -> None:
        has_bias = linear.bias is not None
        nn.Linear.__init__(self, linear.in_features, linear.out_features, bias=has_bias, device="meta")
        self._adapt(linear, rank=rank, scale=scale, dropout=dropout, b_lr_ratio=b_lr_ratio)
        self._start(init)

    def quantise(self) -> None:
        """Stores the weight in 4 bits, as a tensor of bytes; for good, what it was is lost."""
        self.weight.data = nf4.quantise(self.weight.data)

    @property
    def is_quantised(self) -> bool:
        return self.weight.dtype == torch.uint8

    @property
    def whole_weight(self) -> Tensor:
        """The weight as numbers, however it is held."""
        if not self.is_quantised:
            return self.weight
        return nf4.dequantise(self.weight, self.out_features, self.in_features, self.lora_A.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        y = self._base(x, self.bias)
        return y if self.original is not None else y + self._change(x)

    def _base(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """W x + b; in the base's own type, which may be narrower than x, since a wider copy of W would be kept."""
        if self.is_quantised:
            return nf4.product(x, self.weight, bias, self.out_features)
        if x.dtype == self.weight.dtype or torch.is_autocast_enabled(x.device.type):
            return F.linear(x, self.weight, bias)
        return F.linear(x.to(self.weight.dtype), self.weight, bias).to(x.dtype)

    def _change(self, x: Tensor) -> Tensor:
        """s · B A dropout(x); scaled where it is narrow."""
        narrow = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A)
        return F.linear(self.scale * narrow, self.lora_B)


class LoRAEmbedding(Adapted, nn.Embedding):
    """y = W e + s · B A e, where e picks a token's column of W (D, V): B starts random and A at zero, as PEFT's.

    Args:
        embedding: the table to adapt.
        rank: r.
        scale, dropout, b_lr_ratio: as in `Adapted`; tokens have nothing to drop.
        init: how A and B start.
    """

    transposed = True

    def __init__(
        self,
        embedding: nn.Embedding,
        *,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        b_lr_ratio: float = 1.0,
        init: Init = "kaiming",
    ) -> None:
        nn.Embedding.__init__(self, embedding.num_embeddings, embedding.embedding_dim, device="meta")
        self._adapt(embedding, rank=rank, scale=scale, dropout=dropout, b_lr_ratio=b_lr_ratio)
        self._start(init)

    def draw(self, low: Tensor, high: Tensor, generator: torch.Generator | None = None) -> None:
        """Fills A with zeros and B from a normal distribution."""
        nn.init.zeros_(low)
        nn.init.normal_(high, generator=generator)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) → (B, T, D)."""
        y = F.embedding(tokens, self.weight).to(self.lora_A.dtype)
        return y if self.original is not None else y + self._change(tokens)

    def _change(self, tokens: Tensor) -> Tensor:
        """s · B A e."""
        return F.linear(self.scale * F.embedding(tokens, self.lora_A.T), self.lora_B)


class DoRA(Adapted):
    """Trains the length of each row apart from its direction (https://arxiv.org/abs/2402.09353).

    m ⊙ V / ‖V‖ with V = W + s · B A and ‖V‖ (out,) the lengths of its rows; m (out,) starts as ‖W‖. Gradients take ‖V‖
    as constant (section 4.3 of the paper).
    """

    def _start(self, init: Init) -> None:
        super()._start(init)
        self.lora_magnitude = nn.Parameter(self._lengths().to(self.lora_A.dtype))

    def hold_base_in(self, dtype: torch.dtype) -> None:
        super().hold_base_in(dtype)
        self.lora_magnitude.data = self._lengths().to(self.lora_A.dtype)

    def merged_weight(self) -> Tensor:
        """m ⊙ V / ‖V‖, in float32 at least."""
        factor = self.lora_magnitude / self._lengths()
        return super().merged_weight() * (factor if self.transposed else factor[:, None])

    @torch.no_grad()
    def _lengths(self) -> Tensor:
        """‖V‖ without V, which is as large as W: ‖w + s b A‖² = ‖w‖² + 2 s b (w Aᵀ) + s² b (A Aᵀ) b for a row w, b."""
        with self._without_autocast():
            dtype, matrix = self._wide, self.matrix
            low, high = self.lora_A.to(dtype), self.scale * self.lora_B.to(dtype)
            square = torch.linalg.vector_norm(matrix, dim=1, dtype=dtype).square()
            across = (matrix @ self.lora_A.to(matrix.dtype).T).to(dtype)
            square = square + (high * (2 * across + high @ (low @ low.T))).sum(1)
            return square.clamp_min(torch.finfo(dtype).tiny).sqrt()  # a row of zeros stays one


class DoRALinear(DoRA, LoRALinear):
    """y = m ⊙ (V x) / ‖V‖ + b."""

    def quantise(self) -> None:
        """As of every layer; m starts as the lengths of what is left."""
        super().quantise()
        self.lora_magnitude.data = self._lengths().to(self.lora_A.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) → (..., out)."""
        if self.original is not None:
            return self._base(x, self.bias)
        y = self._base(x, None) + self._change(x)
        y = y * (self.lora_magnitude / self._lengths()).to(y.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class DoRAEmbedding(DoRA, LoRAEmbedding):
    """y = m ⊙ (V e) / ‖V‖."""

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) → (B, T, D)."""
        y = super().forward(tokens)
        return y if self.original is not None else y * (self.lora_magnitude / self._lengths()).to(y.dtype)
