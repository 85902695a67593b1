"""Words of espeak-ng: made once, always the same, and split by speaker."""

import hashlib

import numpy as np
import pytest

from txtrain.audio.augment import Augment
from txtrain.audio.espeak import speakers
from txtrain.audio.mel import log_mel
from txtrain.data.spoken import SpokenWords, held_out_speakers
from txtrain.data.tokenizer import Char
from txtrain.errors import UserError


def spoken(folder, **options):
    made = SpokenWords(
        **{"words": ["yes", "no"], "accents": ["en-us", "en"], "takes": 1} | options,
        features=log_mel(num_mels=20),
        augment=Augment(),
        tokenizer=Char(),
        cache_dir=str(folder),
    )
    made.prepare()
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def voices(clips):
    return {clip.source.split("+")[1].split(" at ")[0] for clip in clips}


def test_no_speaker_is_on_both_sides(folder):
    made = spoken(folder)
    train, validation = voices(made.clips["train"]), voices(made.clips["validation"])
    speaker = {voice: name for name, found in speakers().items() for voice in found}
    assert train | validation == set(speaker)
    assert not {speaker[voice] for voice in train} & {speaker[voice] for voice in validation}
    assert {speaker[voice] for voice in validation} == held_out_speakers(0)
    assert made.labels == ["no", "yes"]
    assert [clip.said for clip in made.clips["train"][:2]] == ["yes", "no"]


def test_each_speaker_is_held_out_in_one_fold():
    folds = [held_out_speakers(fold) for fold in range(5)]
    assert set.union(*folds) == set(speakers()) and sum(map(len, folds)) == len(speakers())


def test_the_sound_is_the_same_whenever_it_is_made(folder, tmp_path):
    def content(made):
        return hashlib.sha256((made.folder / "waveforms.bin").read_bytes()).hexdigest()

    assert content(spoken(folder)) == content(spoken(tmp_path))


def test_strings_have_transcripts(folder):
    made = spoken(folder, words=["one", "two"], lengths=[2, 4], accents=["en-us"])
    assert made.transcribed
    counts = {len(clip.said.split()) for clip in made.clips["train"]}
    assert counts == {2, 3, 4} and {word for c in made.clips["train"] for word in c.said.split()} == {"one", "two"}
    longer = [np.mean([c.samples for c in made.clips["train"] if len(c.said.split()) == n]) for n in (2, 3, 4)]
    assert longer == sorted(longer)


@pytest.mark.parametrize(
    "wrong, line",
    [
        ({"words": ["yes"]}, r"data\.words="),
        ({"fold": 5}, r"data\.fold=0 to 4"),
        ({"lengths": [3, 2]}, r"data\.lengths=\[3,8\]"),
        ({"accents": []}, r"data\.accents="),
        ({"takes": 0}, r"data\.takes=1"),
    ],
)
def test_impossible_values_are_refused(folder, wrong, line):
    with pytest.raises(UserError, match=line):
        spoken(folder, **wrong)
