"""Another sample rate: interpolation by a windowed sinc, which keeps out what the new rate cannot hold."""

from functools import lru_cache
from math import gcd, pi

import torch
import torch.nn.functional as F
from torch import Tensor

ZEROS = 6  # crossings of the sinc on each side
ROLLOFF = 0.99  # share of the lower of both half rates that passes
MOST_WEIGHTS = 2**23  # that are held at a time


def resample(waveform: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """(samples,) at `old_rate` Hz → (ceil(samples · new_rate / old_rate),) at `new_rate`.

    Band-limited interpolation (https://ccrma.stanford.edu/~jos/resample/) with a Hann window, torchaudio's default.
    """
    if old_rate == new_rate:
        return waveform
    divisor = gcd(old_rate, new_rate)
    old, new = old_rate // divisor, new_rate // divisor
    if new * (old + 2 * _reach(old, new)) > MOST_WEIGHTS:
        return _sample_by_sample(waveform, old, new)
    kernels, width = _kernels(old, new)
    padded = F.pad(waveform.float(), (width, width + old))
    phases = F.conv1d(padded[None, None], kernels[:, None], stride=old)[0]  # (new, blocks of `old` samples)
    return phases.T.flatten()[: -(-len(waveform) * new // old)]


@lru_cache(maxsize=8)
def _kernels(old: int, new: int) -> tuple[Tensor, int]:
    """A filter for each of the `new` places that an output sample can have between input samples, and their reach."""
    width = _reach(old, new)
    place = torch.arange(-width, width + old, dtype=torch.float64)[None] / old
    time = place - torch.arange(new, dtype=torch.float64)[:, None] / new
    return _weights(time, old, new), width


def _reach(old: int, new: int) -> int:
    """How many input samples on each side of it an output sample is made of."""
    return int(-(-ZEROS * old // (min(old, new) * ROLLOFF)))


def _weights(time: Tensor, old: int, new: int) -> Tensor:
    """Of input samples, by how far they are from the output sample, in blocks of `old`."""
    cutoff = min(old, new) * ROLLOFF
    time = (time * cutoff).clamp(-ZEROS, ZEROS)
    window = torch.cos(time * pi / ZEROS / 2).square()
    return (torch.sinc(time) * window * (cutoff / old)).float()


def _sample_by_sample(waveform: Tensor, old: int, new: int) -> Tensor:
    """The same for rates with so small a divisor that the filters of all places would not fit into memory."""
    length, width = -(-len(waveform) * new // old), _reach(old, new)
    taps = torch.arange(-width, width + 1)
    padded = F.pad(waveform.float(), (width, width + 1))
    parts = []
    for first in range(0, length, rows := max(1, MOST_WEIGHTS // 8 // len(taps))):
        number = torch.arange(first, min(first + rows, length))
        nearest = number * old // new
        time = (nearest[:, None] + taps).double() / old - (number.double() / new)[:, None]
        parts.append((padded[nearest[:, None] + taps + width] * _weights(time, old, new)).sum(1))
    return torch.cat(parts)
