"""Files of sound: finding and reading wav, flac, ogg and mp3."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from txtrain.audio.resample import resample
from txtrain.data.files import walk
from txtrain.errors import UserError

FOREIGN = (".m4a", ".aac", ".wma", ".amr", ".webm", ".mp4")  # sound, but not libsndfile's
RATES = (100, 2_000_000)  # Hz; what a header says beyond them is damage
LONGEST = 12 * 3600  # seconds of a file that is held in memory
EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif", ".opus")
LOUDEST = 32767  # of 16-bit samples
# libsndfile's notes on a file that is shorter than its header says. Programs that write into a pipe do not know the
# length, and say that it is about the most.
CUT_SHORT = re.compile(r"^ *(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
UNKNOWN_LENGTH, SLOPPY = 0x7FFF0000, 64  # bytes: from which on, and up to which

Waveform = NDArray[np.int16]


class UnreadableError(Exception):
    """What is wrong with a file of sound, in a few words."""


def is_audio(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def find_audio(folder: Path) -> Iterator[Path]:
    """The files of sound in a folder and all below it, in order, be they of a kind that cannot be read."""
    yield from (path for path in walk(folder) if is_audio(path) or path.suffix.lower() in FOREIGN)


def read_audio(path: Path, sample_rate: int) -> tuple[Waveform, int]:
    """One channel, the mean of all that there are, at `sample_rate` in 16 bits, and the file's own rate.

    Raises:
        UnreadableError: there is no sound in it.
        UserError: the package that reads sound is not installed.
    """
    soundfile = import_soundfile()
    if not path.is_file():
        got = "it is no regular file" if path.exists() else "it is not there"
        raise UnreadableError("it is a folder" if path.is_dir() else got)
    if path.suffix.lower() in FOREIGN:
        raise UnreadableError(f"libsndfile reads no {path.suffix.lower()}: convert it to .wav or .flac")
    try:
        with soundfile.SoundFile(str(path)) as file:
            _check_length(file.frames, file.samplerate)
            sound, rate, notes = file.read(dtype="float32", always_2d=True), file.samplerate, file.extra_info
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise UnreadableError(" ".join(str(getattr(error, "error_string", error)).split())) from None
    cut = CUT_SHORT.search(notes)
    if cut and int(cut[1]) < UNKNOWN_LENGTH and int(cut[1]) - int(cut[2]) > SLOPPY:
        raise UnreadableError(f"it is cut short: {cut[2]} of {cut[1]} bytes of sound are there")
    mono = torch.from_numpy(sound).mean(1)
    if not len(mono):
        raise UnreadableError("it has no samples")
    if not mono.isfinite().all():
        raise UnreadableError("some samples are no numbers")
    return to_16_bits(resample(mono, rate, sample_rate)), rate


def _check_length(frames: int, rate: int) -> None:
    """Refuses what would take more memory than there is, before it is asked for."""
    if not RATES[0] <= rate <= RATES[1]:
        raise UnreadableError(f"its sample rate is {rate} Hz, which is not between {RATES[0]} and {RATES[1]}")
    if 0 <= frames < UNKNOWN_LENGTH and frames > LONGEST * rate:
        raise UnreadableError(
            f"it is {frames / rate / 3600:.0f} hours long: cut it into parts of {LONGEST // 3600} hours"
        )


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
