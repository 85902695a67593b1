"""Words spoken by espeak-ng: real audio on every machine, with voices that training never hears."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from txtrain.audio.clips import Recording
from txtrain.audio.espeak import Espeak, speakers
from txtrain.audio.files import to_16_bits, to_floats
from txtrain.audio.resample import resample
from txtrain.data.audio import AudioData
from txtrain.data.base import check_least
from txtrain.data.order import sample_generator
from txtrain.errors import UserError

FOLDS = 5
WORDS_PER_MINUTE = (110, 260)
PITCHES = (20, 80)
RANGES = (20, 80)


class SpokenWords(AudioData):
    """Single words, or strings of them, by all speakers of espeak-ng in several accents, at many rates and pitches.

    The sound is made once and kept in `cache_dir`. A fifth of the speakers, with all their versions, is for validation.

    Args:
        words: what is said; each is a class.
        accents: languages of espeak-ng that the speakers take in turn.
        takes: clips of each word by each voice; of each voice, where clips are strings of words.
        lengths: fewest and most words in a string, whose words are then its transcript; None: single words.
        fold: which fifth of the speakers is for validation, 0 to 4.
        base: those of all audio data.
    """

    def __init__(
        self,
        *,
        words: list[str],
        accents: list[str],
        takes: int = 6,
        lengths: list[int] | None = None,
        fold: int = 0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        check_least({"takes": takes}, least=1)
        if not 0 <= fold < FOLDS:
            raise UserError(f"data.fold={fold} is not one of the {FOLDS} parts of the speakers: set data.fold=0 to 4")
        if len(set(words)) < 2 or not all(word.strip() for word in words):
            raise UserError(f"data.words={words} are not two different words or more: set data.words=[yes,no]")
        if lengths is not None and (len(lengths) != 2 or not 1 <= lengths[0] <= lengths[1]):
            raise UserError(f"data.lengths={lengths} is not the fewest and the most words: set data.lengths=[3,8]")
        if not accents:
            raise UserError("data.accents is empty: set data.accents=[en-us]")
        self.words, self.accents, self.takes, self.lengths, self.fold = list(words), accents, takes, lengths, fold
        self.transcribed = lengths is not None

    def identity(self) -> Any:
        made_of = {"speakers": speakers(), "words": self.words, "accents": self.accents, "takes": self.takes}
        return {"espeak": made_of, "lengths": self.lengths, "fold": self.fold}

    def recordings(self, notes: dict[str, str]) -> Iterator[Recording]:
        espeak, held_out, silent = Espeak(), held_out_speakers(self.fold), 0
        for speaker, voices in speakers().items():
            for number, voice in enumerate(voices):
                for take, text in enumerate(self._texts(voice)):
                    random = _random(voice, take, 1)
                    accent = self.accents[(take + number) % len(self.accents)]
                    rate, pitch, pitch_range = (
                        int(random.integers(*reach)) for reach in (WORDS_PER_MINUTE, PITCHES, RANGES)
                    )
                    name = f"{accent}+{voice}"
                    sound = espeak.say(text, voice=name, rate=rate, pitch=pitch, pitch_range=pitch_range)
                    if not sound.any():
                        silent += 1
                        continue
                    waveform = resample(to_floats(sound), espeak.sample_rate, self.features.sample_rate)
                    source = f"{name} at {rate} words per minute, pitch {pitch}"
                    yield Recording(to_16_bits(waveform), text, source, speaker in held_out)
        every = len(speakers())
        notes["speakers"] = f"{every - len(held_out)} to train on, {len(held_out)} others to validate"
        if silent:
            notes["silent"] = f"{silent} clips were silent and are left out"

    def _texts(self, voice: str) -> Iterator[str]:
        """What a voice says."""
        for take in range(self.takes):
            if self.lengths is None:
                yield from self.words
            else:
                random = _random(voice, take, 0)
                count = int(random.integers(self.lengths[0], self.lengths[1] + 1))
                yield " ".join(self.words[i] for i in random.integers(0, len(self.words), count))

    def _named(self) -> str:
        return "the speech of espeak-ng"


def held_out_speakers(fold: int) -> set[str]:
    """A fifth of the speakers, drawn by a hash of their names."""
    drawn = sorted(speakers(), key=lambda speaker: hashlib.blake2b(speaker.encode(), digest_size=8).digest())
    return set(drawn[fold::FOLDS])


def _random(voice: str, take: int, purpose: int) -> np.random.Generator:
    return sample_generator(
        int.from_bytes(hashlib.blake2b(voice.encode(), digest_size=4).digest(), "big"), take, purpose
    )
