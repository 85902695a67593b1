"""Files of sound: finding and reading wav, flac, ogg and mp3."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from txtrain.audio.resample import resample
from txtrain.errors import UserError

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus")
LOUDEST = 32767  # of 16-bit samples

Waveform = NDArray[np.int16]


class UnreadableError(Exception):
    """What is wrong with a file of sound, in a few words."""


def is_audio(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def find_audio(folder: Path) -> Iterator[Path]:
    """The files of sound in a folder and all below it, in order."""
    yield from sorted(path for path in folder.rglob("*") if is_audio(path) and path.is_file())


def read_audio(path: Path, sample_rate: int) -> tuple[Waveform, int]:
    """One channel, the mean of all that there are, at `sample_rate` in 16 bits, and the file's own rate.

    Raises:
        UnreadableError: there is no sound in it.
        UserError: the package that reads sound is not installed.
    """
    soundfile = import_soundfile()
    try:
        sound, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise UnreadableError(" ".join(str(getattr(error, "error_string", error)).split())) from None
    mono = torch.from_numpy(sound).mean(1)
    if not len(mono):
        raise UnreadableError("it has no samples")
    if not mono.isfinite().all():
        raise UnreadableError("some samples are no numbers")
    return to_16_bits(resample(mono, rate, sample_rate)), rate


def to_16_bits(waveform: torch.Tensor) -> Waveform:
    """Samples in [-1, 1] as integers; what is louder is cut off."""
    return (waveform.clamp(-1, 1) * LOUDEST).round().to(torch.int16).numpy()


def to_floats(waveform: Waveform) -> torch.Tensor:
    """Samples of 16 bits in [-1, 1]."""
    return torch.from_numpy(waveform.astype(np.float32)) / LOUDEST


def import_soundfile() -> Any:
    """The package that reads sound, here because only some tasks need it."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: libsndfile is not there
        raise UserError(
            f"sound is read by a package that is missing ({error}): type pip install 'txtrain[tasks]'"
        ) from None
    return soundfile
