"""Speech out of espeak-ng, whose library and voices the package `espeakng-loader` brings."""

import ctypes
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txtrain.errors import UserError

# Of speak_lib.h.
_SYNCHRONOUS, _NO_EXIT, _UTF8, _FROM_START = 0x02, 0x8000, 1, 1
_RATE, _PITCH, _RANGE = 1, 3, 4

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Espeak:
    """espeak-ng (https://github.com/espeak-ng/espeak-ng), fresh.

    What it says depends on what it said before: noise and flutter of a voice run on. So each of these is a library of
    its own, and the same calls in the same order give the same sound.

    Attributes:
        sample_rate: of what it says, in Hz.
    """

    def __init__(self) -> None:
        loader = import_espeak()
        library, data = Path(loader.get_library_path()), loader.get_data_path()
        with TemporaryDirectory(prefix="txtrain-", ignore_cleanup_errors=True) as folder:
            # Another file is another library to the loader: loaded anew, with nothing said yet.
            self._library = ctypes.CDLL(shutil.copy(library, folder))
        self._parts: list[NDArray[np.int16]] = []
        self._voice = ""
        self._hear = _CALLBACK(self._take)  # kept: the library holds no reference
        self.sample_rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _NO_EXIT))
        if self.sample_rate <= 0:
            raise UserError(f"espeak-ng does not start with the voices in {data}: reinstall 'txtrain[tasks]'")
        self._library.espeak_SetSynthCallback(self._hear)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(0))
        if os.name == "posix":  # noise of some voices is drawn from the C library
            ctypes.CDLL(None).srand(0)

    def say(
        self, text: str, *, voice: str, rate: int = 175, pitch: int = 50, pitch_range: int = 50
    ) -> NDArray[np.int16]:
        """A text as sound, (samples,).

        Args:
            text: what is said.
            voice: a language, and after + a speaker, such as `en-us+f3`.
            rate: words per minute.
            pitch: of the voice, 0 to 100, where 50 is its own.
            pitch_range: how much it rises and falls, 0 to 100.
        """
        if voice != self._voice and self._library.espeak_SetVoiceByName(voice.encode()):
            raise UserError(
                f"espeak-ng has no voice {voice}: give languages that it has, such as data.accents=[en-us,en]"
            )
        self._voice = voice
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._parts.clear()
        encoded = text.encode() + b"\0"
        failed = self._library.espeak_Synth(encoded, len(encoded), 0, _FROM_START, 0, _UTF8, None, None)
        assert not failed, f"espeak-ng cannot say {text!r} (error {failed})"
        return np.concatenate(self._parts) if self._parts else np.zeros(0, dtype=np.int16)

    def _take(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


def speakers() -> dict[str, list[str]]:
    """The voices of espeak-ng by speaker; one that comes in several versions (`klatt2`, `klatt3`) is one speaker.

    Whose voices are called m1, m2, ... and f1, f2, ... are men and women, not versions of one.
    """
    folder = Path(import_espeak().get_data_path(), "voices", "!v")
    found: dict[str, list[str]] = {}
    for voice in sorted(path.name for path in folder.iterdir()):
        speaker = voice if len(voice) == 2 else voice.lower().removesuffix("robot").rstrip("0123456789")
        found.setdefault(speaker, []).append(voice)
    return found


def import_espeak() -> Any:
    """The package that brings espeak-ng, here because only some data need it."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise UserError(
            f"spoken data are made by a package that is missing ({error.name}): type pip install 'txtrain[tasks]'"
        ) from None
    return espeakng_loader
