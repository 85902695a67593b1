"""Waveforms to log-mel spectrograms: Whisper's and AST's, in plain PyTorch.

A clip's spectrogram is a function of that clip alone: nothing that it is batched with changes it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Scale = Literal["htk", "slaney"]

_SLANEY_HZ_PER_MEL = 200 / 3
_SLANEY_BREAK = 1000.0  # Hz: linear below, logarithmic above
_SLANEY_STEP = 6.4 ** (1 / 27)
AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974  # of log-energies


def hertz_to_mel(hertz: Tensor, scale: Scale) -> Tensor:
    """The mel scale, as HTK has it, 2595 log10(1 + f / 700), or Slaney's Auditory Toolbox (librosa's default)."""
    if scale == "htk":
        return 2595 * torch.log10(1 + hertz / 700)
    above = _SLANEY_BREAK / _SLANEY_HZ_PER_MEL + (hertz.clamp(min=_SLANEY_BREAK) / _SLANEY_BREAK).log() / _log_step()
    return torch.where(hertz < _SLANEY_BREAK, hertz / _SLANEY_HZ_PER_MEL, above)


def mel_to_hertz(mel: Tensor, scale: Scale) -> Tensor:
    """The inverse of `hertz_to_mel`."""
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    linear = _SLANEY_BREAK / _SLANEY_HZ_PER_MEL
    above = _SLANEY_BREAK * ((mel.clamp(min=linear) - linear) * _log_step()).exp()
    return torch.where(mel < linear, mel * _SLANEY_HZ_PER_MEL, above)


def mel_filters(
    *,
    num_mels: int,
    fft_size: int,
    sample_rate: int,
    low: float = 0.0,
    high: float | None = None,
    scale: Scale = "slaney",
    equal_area: bool = True,
    straight_in_mel: bool = False,
) -> Tensor:
    """Triangular filters, evenly spaced in mel → (fft_size // 2 + 1, num_mels), float64.

    Args:
        num_mels: filters M.
        fft_size: points of the Fourier transform whose power is filtered.
        sample_rate: in Hz.
        low, high: where the first filter begins and the last one ends, in Hz. Default of `high`: half of `sample_rate`.
        scale: which mel scale.
        equal_area: whether each triangle has area 1 in Hz (Slaney) rather than height 1 (HTK).
        straight_in_mel: whether sides are straight over mel (Kaldi) rather than over Hz.
    """
    frequencies = torch.linspace(0, sample_rate / 2, fft_size // 2 + 1, dtype=torch.float64)
    ends = hertz_to_mel(torch.tensor([low, high or sample_rate / 2], dtype=torch.float64), scale)
    corners = torch.linspace(ends[0].item(), ends[1].item(), num_mels + 2, dtype=torch.float64)
    in_hertz = mel_to_hertz(corners, scale)
    place = hertz_to_mel(frequencies, scale) if straight_in_mel else frequencies
    corner = corners if straight_in_mel else in_hertz
    rising = (place[:, None] - corner[:-2]) / (corner[1:-1] - corner[:-2])
    falling = (corner[2:] - place[:, None]) / (corner[2:] - corner[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    return filters * (2 / (in_hertz[2:] - in_hertz[:-2])) if equal_area else filters


class LogMel(ABC):
    """Spectrograms of 25 ms windows, 10 ms apart, on a logarithmic scale.

    Args:
        sample_rate: of the waveforms, in Hz.
        num_mels: filters M.
    """

    def __init__(self, *, sample_rate: int, num_mels: int) -> None:
        for name, value, least in (("sample_rate", sample_rate, 1000), ("num_mels", num_mels, 1)):
            if value < least:
                raise ValueError(
                    f"data.features.{name} is {value}: give {least} or more, such as "
                    f"data.features.{name}={16000 if name == 'sample_rate' else 80}"
                )
        self.sample_rate, self.num_mels = sample_rate, num_mels
        self.window_len, self.hop = sample_rate // 40, sample_rate // 100
        self.window, self.filters = self._window(), self._filters().float()

    zero: float
    """What a logarithm of 0 becomes."""

    @abstractmethod
    def num_frames(self, samples: int) -> int:
        """Frames T of a waveform of so many samples."""

    @abstractmethod
    def _window(self) -> Tensor: ...

    @abstractmethod
    def _filters(self) -> Tensor: ...

    @abstractmethod
    def _frames(self, waveform: Tensor) -> Tensor:
        """(samples,) → (T, window_len)."""

    @abstractmethod
    def _power(self, frames: Tensor) -> Tensor:
        """(N, window_len) → (N, fft_size // 2 + 1)."""

    @abstractmethod
    def _scaled(self, energies: Tensor) -> Tensor:
        """Energies of one clip (T, M) → their logarithms, normalised."""

    def __call__(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Waveforms (samples,) in [-1, 1] → spectrograms (T, M), all float32. A short one is filled up."""
        if not waveforms:
            return []
        frames = [self._frames(F.pad(waveform, (0, max(0, self.window_len - len(waveform))))) for waveform in waveforms]
        energies = self._power(torch.cat(frames)) @ self.filters
        return [self._scaled(clip) for clip in energies.split([len(clip) for clip in frames])]


class WhisperMel(LogMel):
    """Whisper's spectrogram (https://arxiv.org/abs/2212.04356): Slaney's scale, the loudest 80 dB, about -1 to 1.

    Frames are centred, the first at sample 0, and the waveform is mirrored at its ends. Whisper itself fills every clip
    up to 30 s before this.
    """

    zero = 1.0

    def __init__(self, *, sample_rate: int = 16000, num_mels: int = 80) -> None:
        super().__init__(sample_rate=sample_rate, num_mels=num_mels)

    def num_frames(self, samples: int) -> int:
        return max(samples, self.window_len) // self.hop

    def _window(self) -> Tensor:
        return torch.hann_window(self.window_len)

    def _filters(self) -> Tensor:
        return mel_filters(num_mels=self.num_mels, fft_size=self.window_len, sample_rate=self.sample_rate)

    def _frames(self, waveform: Tensor) -> Tensor:
        half = self.window_len // 2
        mirrored = F.pad(waveform[None], (half, half), mode="reflect")[0]
        return mirrored.unfold(0, self.window_len, self.hop)[: self.num_frames(len(waveform))]

    def _power(self, frames: Tensor) -> Tensor:
        return _power(torch.fft.rfft(frames * self.window))

    def _scaled(self, energies: Tensor) -> Tensor:
        decades = energies.clamp(min=1e-10).log10()
        return (decades.clamp(min=decades.max() - 8) + 4) / 4


class AstMel(LogMel):
    """AST's spectrogram (https://arxiv.org/abs/2104.01778): Kaldi's filter bank, (ln − mean) / (2 · std).

    Whole windows only, each without its mean, with a pre-emphasis of 0.97; HTK's scale from 20 Hz on.

    Args:
        sample_rate, num_mels: as in `LogMel`.
        mean, std: of the logarithms over a data set. Default: AudioSet's.
    """

    floor = torch.finfo(torch.float32).eps

    def __init__(
        self, *, sample_rate: int = 16000, num_mels: int = 128, mean: float | None = None, std: float | None = None
    ) -> None:
        super().__init__(sample_rate=sample_rate, num_mels=num_mels)
        self.mean, self.std = AUDIOSET_MEAN if mean is None else mean, AUDIOSET_STD if std is None else std
        if self.std <= 0:
            raise ValueError(f"data.features.std is {self.std}: give a positive number, such as data.features.std=4.57")
        self.zero = -self.mean / (2 * self.std)

    @property
    def _fft_size(self) -> int:
        return 1 << (self.window_len - 1).bit_length()

    def num_frames(self, samples: int) -> int:
        return (max(samples, self.window_len) - self.window_len) // self.hop + 1

    def _window(self) -> Tensor:
        return torch.hann_window(self.window_len, periodic=False)

    def _filters(self) -> Tensor:
        return mel_filters(
            num_mels=self.num_mels,
            fft_size=self._fft_size,
            sample_rate=self.sample_rate,
            low=20.0,
            scale="htk",
            equal_area=False,
            straight_in_mel=True,
        )

    def _frames(self, waveform: Tensor) -> Tensor:
        return waveform.unfold(0, self.window_len, self.hop)

    def _power(self, frames: Tensor) -> Tensor:
        frames = frames - frames.mean(dim=1, keepdim=True)
        before = torch.cat((frames[:, :1], frames[:, :-1]), dim=1)
        return _power(torch.fft.rfft((frames - 0.97 * before) * self.window, n=self._fft_size))

    def _scaled(self, energies: Tensor) -> Tensor:
        return (energies.clamp(min=self.floor).log() - self.mean) / (2 * self.std)


STYLES: dict[str, type[WhisperMel] | type[AstMel]] = {"whisper": WhisperMel, "ast": AstMel}


def log_mel(
    *,
    style: Literal["whisper", "ast"] = "whisper",
    sample_rate: int = 16000,
    num_mels: int = 80,
    mean: float | None = None,
    std: float | None = None,
) -> LogMel:
    """A spectrogram by its name; mean and std are those of `AstMel`, and Whisper's has none."""
    given = {name: value for name, value in (("mean", mean), ("std", std)) if value is not None}
    if given and style != "ast":
        named = " and ".join(f"data.features.{name}" for name in given)
        raise ValueError(f"{named} normalise style=ast, and data.features.style is {style}: leave it out")
    return STYLES[style](sample_rate=sample_rate, num_mels=num_mels, **given)


def _log_step() -> Tensor:
    return torch.tensor(_SLANEY_STEP, dtype=torch.float64).log()


def _power(spectrum: Tensor) -> Tensor:
    return torch.view_as_real(spectrum).square().sum(-1)
