"""Speech of espeak-ng: the same calls give the same sound."""

import numpy as np
import pytest

from txtrain.audio.espeak import Espeak, speakers
from txtrain.errors import UserError

SAYINGS = [
    ("one", "en-us+f3"),
    ("two", "en+whisper"),
    ("three", "en-us+klatt3"),
    ("one", "en-us+f3"),
    ("vier", "de+m1"),
]


def said() -> list[np.ndarray]:
    espeak = Espeak()
    return [espeak.say(text, voice=voice, rate=150 + 10 * i) for i, (text, voice) in enumerate(SAYINGS)]


def test_the_same_calls_give_the_same_sound():
    first, second = said(), said()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(len(sound) > 4000 and np.abs(sound).max() > 1000 for sound in first)


def test_rate_and_pitch_are_heard():
    espeak = Espeak()
    slow, fast = (espeak.say("seven", voice="en-us+m1", rate=rate) for rate in (100, 250))
    assert len(slow) > 1.5 * len(fast)

    def crossings(sound: np.ndarray) -> float:
        """The strongest frequency below 400 Hz."""
        spectrum = np.abs(np.fft.rfft(sound.astype(float)))
        return float(spectrum[: 400 * len(sound) // espeak.sample_rate].argmax() * espeak.sample_rate / len(sound))

    low, high = (espeak.say("aaaaa", voice="en-us+m1", pitch=pitch, pitch_range=0) for pitch in (10, 90))
    assert crossings(high) > 1.3 * crossings(low)


def test_versions_of_a_voice_are_one_speaker():
    found = speakers()
    assert len(found) > 60
    assert found["klatt"] == ["klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6"]
    assert found["f1"] == ["f1"] and found["m8"] == ["m8"]
    voices = [voice for versions in found.values() for voice in versions]
    assert len(voices) == len(set(voices)) > 90


def test_an_unknown_voice_is_one_line():
    with pytest.raises(UserError, match=r"no voice xx\+f1.*data\.accents="):
        Espeak().say("one", voice="xx+f1")
