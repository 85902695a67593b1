"""From spectrograms to vectors, and the encoder that reads them: Whisper's convolutions, and AST's patches."""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from txtrain.model.embed import Input
from txtrain.model.grid import Grid
from txtrain.model.patches import Pieces, pair
from txtrain.model.shape import Shape
from txtrain.model.transformer import EncoderWithHead


class Frames(Input):
    """The first layer of a model that reads spectrograms of different lengths.

    What is behind the end of a clip takes no part in what its real vectors are.

    Args:
        num_mels: filters M of a spectrogram.
        max_frames: of the longest clip.
    """

    def __init__(self, *, num_mels: int | None = None, max_frames: int | None = None) -> None:
        super().__init__()
        if num_mels is None or max_frames is None:
            raise ValueError(
                "this embedding reads spectrograms, and this task has none: leave embedding out (default for tokens, "
                "patches for images)"
            )
        self.num_mels, self.max_frames = num_mels, max_frames

    @abstractmethod
    def times(self, frames: Any) -> Any:
        """How many vectors follow each other in time, of so many frames: integers, or tensors of them."""

    @abstractmethod
    def real(self, lengths: Tensor, frames: int) -> Tensor:
        """Which vectors of a batch of `frames` frames are real: lengths (B,) → (B, T), True for real ones."""

    def cleared(self, x: Tensor, lengths: Tensor) -> Tensor:
        """x (B, F, ...) with zeros behind the end of each clip, lengths (B,)."""
        inside = torch.arange(x.size(1), device=x.device) < lengths[:, None]
        return x * inside[..., None].to(x.dtype)


class Convolutions(Frames):
    """Two convolutions over time, the second of stride 2 (Whisper, https://arxiv.org/abs/2212.04356).

    F frames become (F + 1) // 2 vectors, one for every 20 ms.

    Args:
        dim: width D.
        vocab_size: not used.
        dropout: probability of zeroing an element.
        num_mels, max_frames: as in `Frames`.
    """

    def __init__(self, *, dim: int, vocab_size: int | None = None, dropout: float = 0.0, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.conv1 = nn.Conv1d(self.num_mels, dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, kernel_size=3, stride=2, padding=1)
        self.dropout = nn.Dropout(dropout)

    @property
    def max_len(self) -> int:
        return int(self.times(self.max_frames))

    def initialise(self) -> None:
        for convolution in (self.conv1, self.conv2):
            nn.init.normal_(convolution.weight, std=(3 * convolution.in_channels) ** -0.5)
            if convolution.bias is not None:
                nn.init.zeros_(convolution.bias)

    def times(self, frames: Any) -> Any:
        return (frames + 1) // 2

    def real(self, lengths: Tensor, frames: int) -> Tensor:
        return torch.arange(self.times(frames), device=lengths.device) < self.times(lengths)[:, None]

    def positions(self, inputs: Tensor) -> Tensor:
        """frames (B, F, M) → (1, T)."""
        return torch.arange(self.times(inputs.size(1)), device=inputs.device)[None]

    def forward(self, inputs: Tensor, add_positions: Callable[[Tensor], Tensor], types: Tensor | None = None) -> Tensor:
        """frames (B, F, M) and their `lengths` (B,) → (B, T, D); `add_positions` maps (B, T, D) → (B, T, D)."""
        lengths = inputs.new_full((len(inputs),), inputs.size(1), dtype=torch.int64) if types is None else types
        # Zeros behind the end are what a convolution sees there of a clip alone, so that its length is all that counts.
        x = F.gelu(self.conv1(self.cleared(inputs, lengths).transpose(1, 2))).transpose(1, 2)
        x = F.gelu(self.conv2(self.cleared(x, lengths).transpose(1, 2))).transpose(1, 2)
        return self.dropout(add_positions(x))


class SpectrogramPatches(Frames, Pieces):
    """Overlapping patches of frequencies and time, each mapped to a vector (AST, https://arxiv.org/abs/2104.01778).

    The grid has a row for each band of frequencies. A patch that is not full at a clip's end is left out, but for the
    first.

    Args:
        dim: width D.
        vocab_size: not used: the vectors of one time are many, so there is no text to read off them.
        dropout: probability of zeroing an element.
        patch_size: mel filters and frames of a patch, or one number for both.
        stride: from one patch to the next, over filters and frames, or one number for both.
        class_token: whether a learned vector goes before the patches, whose output stands for the clip.
        distillation_token: whether a second one follows it, as in AST.
        num_mels, max_frames: as in `Frames`.
    """

    def __init__(
        self,
        *,
        dim: int,
        vocab_size: int | None = None,
        dropout: float = 0.0,
        patch_size: int | list[int] = 16,
        stride: int | list[int] = 10,
        class_token: bool = True,
        distillation_token: bool = False,
        **sizes: Any,
    ) -> None:
        super().__init__(**sizes)
        if vocab_size is not None:
            raise ValueError(
                "embedding=spectrogram_patches has many vectors at one time, and a text needs one: "
                "set embedding=convolutions"
            )
        self.patch_size, self.stride = pair("patch_size", patch_size), pair("stride", stride)
        if self.patch_size[0] > self.num_mels:
            raise ValueError(
                f"embedding.patch_size={patch_size} is larger than the {self.num_mels} mel filters: "
                f"set embedding.patch_size={self.num_mels} or less"
            )
        self.kernel = (1, *self.patch_size)
        self.bands = (self.num_mels - self.patch_size[0]) // self.stride[0] + 1
        self.grid = Grid(size=(self.bands, self.times(self.max_frames)), prefix=class_token + distillation_token)
        tokens = {"class_token": class_token, "distillation_token": distillation_token}
        self.map_pieces(size=math.prod(self.patch_size), dim=dim, dropout=dropout, **tokens)

    def times(self, frames: Any) -> Any:
        times = (frames - self.patch_size[1]) // self.stride[1] + 1
        return times.clamp(min=1) if isinstance(times, Tensor) else max(1, times)

    def real(self, lengths: Tensor, frames: int) -> Tensor:
        times = torch.arange(self.times(frames), device=lengths.device) < self.times(lengths)[:, None]
        prefix = times.new_ones(len(times), len(self.prefix()))
        return torch.cat((prefix, times.repeat(1, self.bands)), dim=1)

    def positions(self, inputs: Tensor) -> Tensor:
        """frames (B, F, M) → (1, T, 2). A shorter clip has the first columns of the grid, it is no coarser one."""
        assert self.grid is not None
        grid = Grid(size=(self.bands, self.times(inputs.size(1))), prefix=self.grid.prefix)
        return grid.positions(grid.size, inputs.device)

    def forward(self, inputs: Tensor, add_positions: Callable[[Tensor], Tensor], types: Tensor | None = None) -> Tensor:
        """frames (B, F, M) and their `lengths` (B,) → (B, T, D); `add_positions` maps (B, T, D) → (B, T, D)."""
        frames = inputs if types is None else self.cleared(inputs, types)
        return self.embed(self._cut(frames), add_positions)

    def _cut(self, frames: Tensor) -> Tensor:
        """(B, F, M) → (B, patches, filters · frames of a patch), in the order of AST's convolution."""
        short = self.patch_size[1] - frames.size(1)
        frames = F.pad(frames, (0, 0, 0, max(0, short)))
        cut = frames.transpose(1, 2).unfold(1, self.patch_size[0], self.stride[0])
        return cut.unfold(2, self.patch_size[1], self.stride[1]).flatten(3).flatten(1, 2)


class AudioEncoder(EncoderWithHead):
    """An encoder of spectrograms, whose head scores labels of a clip, or tokens at each time.

    Args:
        num_mels: filters M of a spectrogram.
        max_frames: of the longest clip.
        shape, embedding, rest: as in `EncoderWithHead`; the embedding makes `Frames`.
    """

    def __init__(
        self, *, num_mels: int, max_frames: int, shape: Shape, embedding: Callable[..., Input], **rest: Any
    ) -> None:
        kind = embedding.func if isinstance(embedding, partial) else embedding
        if not (isinstance(kind, type) and issubclass(kind, Frames)):
            raise ValueError(
                "this task reads spectrograms: set embedding=convolutions or embedding=spectrogram_patches"
            )
        sized = partial(embedding, num_mels=num_mels, max_frames=max_frames)
        super().__init__(shape=shape, embedding=sized, **rest)

    def forward(self, frames: Tensor, lengths: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """frames (B, F, M), lengths (B,) of which are real (default: all) → logits (B, L), or (B, T, V)."""
        embedding: Frames = self.embedding  # type: ignore[assignment]
        if lengths is None:
            lengths = torch.full((len(frames),), frames.size(1), device=frames.device)
        positions, real = embedding.positions(frames), embedding.real(lengths, frames.size(1))
        x = embedding(frames, partial(self.stack.encoding.embed, positions=positions), lengths)
        return self.head(self.stack(x, positions, padding=real), real)

    def times(self, lengths: Tensor) -> Tensor:
        """How many times T of the logits are real, of clips of `lengths` frames (B,)."""
        return self.embedding.times(lengths)  # type: ignore[operator]

    def num_vectors(self, frames: int) -> int:
        """Vectors of a clip of so many frames, those of no time among them."""
        lengths = torch.tensor([frames])
        return int(self.embedding.real(lengths, frames).size(1))  # type: ignore[operator]
