"""Clips of different lengths as one batch of spectrograms."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

FRAME_MULTIPLE = 16  # batches are filled up to one, so that there are few different shapes

Fill = Literal["mask", "silence", "zeros"]


def crop(waveform: Tensor, most: int, place: float = 0.5) -> Tensor:
    """At most so many samples of a waveform (samples,), from a place on: 0 is its beginning, 1 as late as can be."""
    surplus = max(0, len(waveform) - most)
    start = int(place * surplus)
    return waveform[start : start + most]


def fill_up(waveform: Tensor, samples: int) -> Tensor:
    """A waveform (samples,) with silence at its end."""
    return F.pad(waveform, (0, max(0, samples - len(waveform))))


def lengthen(spectrogram: Tensor, frames: int, value: float) -> Tensor:
    """A spectrogram (T, M) with frames of one value at its end."""
    return F.pad(spectrogram, (0, 0, 0, max(0, frames - len(spectrogram))), value=value)


def padded_width(longest: int, max_frames: int) -> int:
    """Frames of a batch whose longest clip has so many."""
    return min(-(-longest // FRAME_MULTIPLE) * FRAME_MULTIPLE, max(longest, max_frames))


def stack(spectrograms: Sequence[Tensor | None], *, num_mels: int, max_frames: int) -> dict[str, Tensor]:
    """Spectrograms (T, M) → `frames` (B, F, M), zero behind the end of each, and `lengths` (B,).

    None is one silent frame.

    Args:
        num_mels: filters M.
        max_frames: of the longest clip that there can be.
    """
    lengths = torch.tensor([1 if clip is None else len(clip) for clip in spectrograms], dtype=torch.int64)
    width = padded_width(int(lengths.max()), max_frames)
    frames = torch.zeros(len(spectrograms), width, num_mels)
    for row, clip in enumerate(spectrograms):
        if clip is not None:
            frames[row, : len(clip)] = clip
    return {"frames": frames, "lengths": lengths}
