"""Angular frequencies of rotary and sinusoidal positions, and the ways to slow them for longer sequences."""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from txtrain.model.grid import on_grid


@dataclass(frozen=True, kw_only=True)
class Frequencies:
    """dim/2 frequencies theta^(-2i/dim) in radians per token. They are made in float32 whatever the model is cast to.

    Args:
        dim: how many dimensions turn, in pairs.
        theta: the longest wave is 2π · theta tokens.
    """

    dim: int
    theta: float

    def at(self, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Frequencies for positions (B or 1, T), shaped to be multiplied with (B or 1, T, 1).

        lengths (B or 1, T) are of the sequence that each position belongs to. Default: the row is one sequence.
        """
        return self.powers(self.theta, positions.device)

    def powers(self, theta: float | Tensor, device: torch.device) -> Tensor:
        """theta^(-2i/dim)."""
        return 1.0 / theta ** (torch.arange(0, self.dim, 2, device=device).float() / self.dim)

    @property
    def gain(self) -> float:
        """Factor on rotated queries and keys."""
        return 1.0

    @property
    def settled_len(self) -> int | None:
        """Positions from here on change the frequencies of earlier ones; None: none do."""
        return None


def angles_on_grid(frequencies: Frequencies, positions: Tensor) -> Tensor:
    """positions (B or 1, T, axes) → (B or 1, T, axes · dim/2): the angles of each axis side by side, 0 off the grid."""
    axes = [place[..., None].float() * frequencies.at(place) for place in positions.unbind(-1)]
    return torch.cat(axes, dim=-1) * on_grid(positions)[..., None]


@dataclass(frozen=True, kw_only=True)
class LinearFrequencies(Frequencies):
    """Position interpolation (https://arxiv.org/abs/2306.15595): every frequency is divided by `factor`."""

    factor: float

    def at(self, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().at(positions) / self.factor


@dataclass(frozen=True, kw_only=True)
class DynamicFrequencies(LinearFrequencies):
    """Dynamic NTK: theta grows with the sequence once that is longer than `original_len`.

    theta' = theta · (factor · length / original_len - (factor - 1))^(dim / (dim - 2)), as in transformers. The length
    is of each sequence, or document, by itself and without padding, so that none depends on what it is batched with.
    """

    original_len: int

    def __post_init__(self) -> None:
        if self.dim == 2:
            raise ValueError(
                "encoding.scaling=dynamic needs 4 rotated dimensions or more, got 2: "
                "raise model.head_dim or encoding.fraction, or set encoding.scaling=linear"
            )

    @property
    def settled_len(self) -> int:
        return self.original_len

    def at(self, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            lengths = positions.amax(-1, keepdim=True) + 1
        growth = (self.factor * lengths[..., None].float() / self.original_len - (self.factor - 1)).clamp(min=1)
        return self.powers(self.theta * growth ** (self.dim / (self.dim - 2)), positions.device)


@dataclass(frozen=True, kw_only=True)
class BandFrequencies(LinearFrequencies):
    """Keeps fast frequencies and divides slow ones by `factor`, with a ramp between; subclasses say of what shape.

    Args:
        band: turns within `original_len` below which a frequency is slow, and above which it is fast.
    """

    original_len: int
    band: tuple[float, float]

    def __post_init__(self) -> None:
        if len(self.band) != 2 or not 0 < self.band[0] < self.band[1]:
            raise ValueError(
                f"encoding.band is {list(self.band)}: give two rising numbers of turns, such as encoding.band=[1,32]"
            )

    def at(self, positions: Tensor, lengths: Tensor | None = None) -> Tensor:
        plain = self.powers(self.theta, positions.device)
        kept = self.kept(plain)
        return plain * kept + plain / self.factor * (1 - kept)

    def kept(self, plain: Tensor) -> Tensor:
        """Share of each plain frequency that is kept, from 1 (fast) to 0 (slow)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class YarnFrequencies(BandFrequencies):
    """YaRN (https://arxiv.org/abs/2309.00071): the ramp is linear in the frequency's index; scores are sharpened too.

    Args:
        attention_factor: factor on rotated queries and keys. Default: 0.1 · ln(factor) + 1.
    """

    band: tuple[float, float] = (1.0, 32.0)
    attention_factor: float | None = None

    def kept(self, plain: Tensor) -> Tensor:
        slow, fast = self.band
        first = max(math.floor(self._index(fast)), 0)
        last = min(math.ceil(self._index(slow)), self.dim - 1)
        index = torch.arange(self.dim // 2, dtype=plain.dtype, device=plain.device)
        return 1 - ((index - first) / (last - first or 0.001)).clamp(0, 1)

    def _index(self, turns: float) -> float:
        """Index of the frequency that makes so many turns within `original_len`."""
        return self.dim * math.log(self.original_len / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

    @property
    def gain(self) -> float:
        return 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor


@dataclass(frozen=True, kw_only=True)
class Llama3Frequencies(BandFrequencies):
    """Llama 3.1 (https://arxiv.org/abs/2407.21783): the ramp is linear in the number of turns."""

    band: tuple[float, float] = (1.0, 4.0)

    def kept(self, plain: Tensor) -> Tensor:
        slow, fast = self.band
        turns = self.original_len * plain / (2 * math.pi)
        return ((turns - slow) / (fast - slow)).clamp(0, 1)


SCALINGS: dict[str | None, type[Frequencies]] = {
    None: Frequencies,
    "linear": LinearFrequencies,
    "dynamic": DynamicFrequencies,
    "yarn": YarnFrequencies,
    "llama3": Llama3Frequencies,
}
NEEDED = {"factor": "factor=4 (new length / old length)", "original_len": "original_len=2048 (the old length)"}


def scaled_frequencies(scaling: str | None, *, dim: int, theta: float, **settings: Any) -> Frequencies:
    """The frequencies of one `encoding.scaling`, after a check that it gets the settings that it needs and no others.

    Args:
        scaling: a key of `SCALINGS`.
        dim, theta: as in `Frequencies`.
        settings: what the user may set; None means that it was not.
    """
    kind = SCALINGS[scaling]
    given = {name: value for name, value in settings.items() if value is not None}
    names = {field.name for field in fields(kind)}
    for name in given.keys() - names:
        users = [str(other) for other, cls in SCALINGS.items() if name in {field.name for field in fields(cls)}]
        raise ValueError(
            f"encoding.{name}={given[name]} has no effect with encoding.scaling={scaling or 'null'}: "
            f"set encoding.scaling={' or '.join(users)}, or leave encoding.{name} out"
        )
    lacking = [name for name in NEEDED if name in names and given.get(name, 0) < 1]
    if lacking:
        needed = " and ".join(f"encoding.{name}" for name in lacking)
        got = " and ".join(str(given.get(name)) for name in lacking)
        example = " ".join(f"encoding.{NEEDED[name]}" for name in lacking)
        raise ValueError(f"encoding.scaling={scaling} needs {needed} of at least 1, got {got}: set {example}")
    return kind(dim=dim, theta=theta, **given)
