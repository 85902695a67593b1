"""Another sample rate: interpolation by a windowed sinc, which keeps out what the new rate cannot hold."""

from functools import lru_cache
from math import gcd, pi

import torch
import torch.nn.functional as F
from torch import Tensor

ZEROS = 6  # crossings of the sinc on each side
ROLLOFF = 0.99  # share of the lower of both half rates that passes


def resample(waveform: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """(samples,) at `old_rate` Hz → (ceil(samples · new_rate / old_rate),) at `new_rate`.

    Band-limited interpolation (https://ccrma.stanford.edu/~jos/resample/) with a Hann window, torchaudio's default.
    """
    if old_rate == new_rate:
        return waveform
    divisor = gcd(old_rate, new_rate)
    old, new = old_rate // divisor, new_rate // divisor
    kernels, width = _kernels(old, new)
    padded = F.pad(waveform.float(), (width, width + old))
    phases = F.conv1d(padded[None, None], kernels[:, None], stride=old)[0]  # (new, blocks of `old` samples)
    return phases.T.flatten()[: -(-len(waveform) * new // old)]


@lru_cache(maxsize=8)
def _kernels(old: int, new: int) -> tuple[Tensor, int]:
    """A filter for each of the `new` places that an output sample can have between input samples, and their reach."""
    cutoff = min(old, new) * ROLLOFF
    width = -(-ZEROS * old // cutoff)
    width = int(width)
    place = torch.arange(-width, width + old, dtype=torch.float64)[None] / old
    time = (place - torch.arange(new, dtype=torch.float64)[:, None] / new) * cutoff
    time = time.clamp(-ZEROS, ZEROS)
    window = torch.cos(time * pi / ZEROS / 2).square()
    return (torch.sinc(time) * window * (cutoff / old)).float(), width
