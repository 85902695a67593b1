"""Word and character error rates against jiwer."""

import random

import jiwer
import pytest

from txtrain.audio.edits import Edits, distance

SAID = ["one two three", "nine", "zero zero one", "  four   five ", "six seven eight nine one two"]
HEARD = ["one too three", "", "zero one one one", "four five", "seven eight nine nine one two six"]


def rates(said, heard):
    edits = Edits.of(said, heard)
    return edits.word_edits / edits.words, edits.character_edits / edits.characters


def test_rates_are_those_of_jiwer():
    # jiwer counts spaces within a transcript as they are in its character error rate, as we do.
    assert rates(SAID, HEARD) == pytest.approx((jiwer.wer(SAID, HEARD), jiwer.cer(SAID, HEARD)), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_rates_of_random_words_are_those_of_jiwer(seed):
    random.seed(seed)

    def text() -> str:
        return " ".join("".join(random.choices("abc", k=random.randint(1, 4))) for _ in range(random.randint(1, 8)))

    said, heard = [text() for _ in range(10)], [text() for _ in range(10)]
    assert rates(said, heard) == pytest.approx((jiwer.wer(said, heard), jiwer.cer(said, heard)), abs=1e-12)


def test_edits_add_up():
    whole, parts = Edits.of(SAID, HEARD), [Edits.of([a], [b]) for a, b in zip(SAID, HEARD, strict=True)]
    for name in ("words", "word_edits", "characters", "character_edits"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts)


def test_distance_of_nothing_is_the_length_of_the_other():
    assert distance("", "abc") == distance("abc", "") == 3 and distance("", "") == 0
