"""Changes of training clips, each a function of (seed, epoch, sample) alone."""

import torch
import torch.nn.functional as F
from numpy.random import Generator
from torch import Tensor


class Augment:
    """Another speed, and SpecAugment (https://arxiv.org/abs/1904.08779). All off by default.

    Args:
        speed: a clip is played at a speed between 1 - this and 1 + this; pitch and formants move along, as with another
            speaker (https://www.isca-archive.org/interspeech_2015/ko15_interspeech.html).
        time_warp: frames by which a point of the spectrogram moves at most, the rest stretched with it (the paper's W).
        frequency_masks: bands of neighbouring mel filters that are hidden (m_F).
        frequency_width: filters in the widest of these bands (F).
        time_masks: stretches of frames that are hidden (m_T).
        time_width: frames in the longest of them (T).
        time_share: of a clip's frames that one of them hides at most (p).
    """

    def __init__(
        self,
        *,
        speed: float = 0.0,
        time_warp: int = 0,
        frequency_masks: int = 0,
        frequency_width: int = 27,
        time_masks: int = 0,
        time_width: int = 100,
        time_share: float = 0.2,
    ) -> None:
        counts = {
            "time_warp": time_warp,
            "frequency_masks": frequency_masks,
            "frequency_width": frequency_width,
            "time_masks": time_masks,
            "time_width": time_width,
        }
        for name, count in counts.items():
            if count < 0:
                raise ValueError(f"data.augment.{name} is {count}: give 0 or more, such as data.augment.{name}=2")
        for name, share in {"speed": speed, "time_share": time_share}.items():
            if not 0 <= share < 1:
                raise ValueError(
                    f"data.augment.{name} is {share}: give a share below 1, such as data.augment.{name}=0.1"
                )
        self.speed, self.time_warp = speed, time_warp
        self.frequency_masks, self.frequency_width = frequency_masks, frequency_width
        self.time_masks, self.time_width, self.time_share = time_masks, time_width, time_share

    def waveform(self, waveform: Tensor, random: Generator, most: int) -> Tensor:
        """(samples,) → (samples / speed,), no slower than lets `most` samples hold it, if they do at its own speed."""
        if not self.speed:
            return waveform
        speed = 1 + self.speed * random.uniform(-1, 1)
        samples = min(max(1, round(len(waveform) / speed)), max(most, len(waveform)))
        return F.interpolate(waveform[None, None], size=samples, mode="linear")[0, 0]

    def longest(self, samples: int) -> int:
        """What the slowest speed makes of a waveform."""
        return int(samples / (1 - self.speed)) + 1 if self.speed else samples

    def shortest(self, samples: int) -> int:
        """What the fastest speed leaves of a waveform."""
        return max(1, int(samples / (1 + self.speed)))

    def spectrogram(self, spectrogram: Tensor, random: Generator) -> Tensor:
        """(T, M) → the same shape; what is hidden has the clip's mean."""
        frames, mels = spectrogram.shape
        if self.time_warp:
            spectrogram = self._warped(spectrogram, random)
        hidden = torch.zeros(frames, mels, dtype=torch.bool)
        for _ in range(self.frequency_masks):
            hidden[:, _stretch(random, mels, min(self.frequency_width, mels))] = True
        longest = min(self.time_width, int(self.time_share * frames))
        for _ in range(self.time_masks):
            hidden[_stretch(random, frames, longest)] = True
        return torch.where(hidden, spectrogram.mean(), spectrogram)

    def _warped(self, spectrogram: Tensor, random: Generator) -> Tensor:
        frames = len(spectrogram)
        reach = min(self.time_warp, (frames - 1) // 2)
        if reach < 1:
            return spectrogram
        centre = int(random.integers(reach, frames - reach))
        moved = centre + int(random.integers(-reach + 1, reach))
        parts = ((spectrogram[:centre], moved), (spectrogram[centre:], frames - moved))
        stretched = [F.interpolate(part.T[None], size=size, mode="linear")[0].T for part, size in parts if size]
        return torch.cat(stretched)


def _stretch(random: Generator, length: int, widest: int) -> slice:
    """A stretch of 0 to `widest` places, anywhere within `length`."""
    width = int(random.integers(0, widest + 1))
    start = int(random.integers(0, length - width + 1))
    return slice(start, start + width)
