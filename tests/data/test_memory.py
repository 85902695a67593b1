"""The translation memory: likeness, what is looked up in training, and that nothing held out is in it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from txtrain.data.catalogues import Catalogues
from txtrain.data.memory import FILE, Memory
from txtrain.data.pair_files import PairFiles
from txtrain.data.parallel import Pair
from txtrain.data.split import letters, linked
from txtrain.data.tokenizer import Byte
from txtrain.errors import UserError

PAIRS = [
    Pair("Delete the folder", "Ordner löschen"),
    Pair("Delete the file", "Datei löschen"),
    Pair("Move the file", "Datei verschieben"),
    Pair("DELETE the folder!", "Diesen Ordner löschen"),
    Pair("Remove this folder", "Ordner löschen"),
    Pair("Hello", "Hallo"),
]


def test_likeness_is_the_sum_of_two_cosines_that_scikit_learn_finds() -> None:
    asked, known = "Move these two folders, the file!", [pair.source for pair in PAIRS]
    expected = np.zeros(len(known))
    for options in (
        # Pieces reach over spaces, and the ends of a text have one.
        {"analyzer": "char", "ngram_range": (2, 5), "preprocessor": lambda text: f" {text.casefold()} "},
        {"token_pattern": r"\w+|[^\w\s]", "ngram_range": (1, 2)},
    ):
        vectors = TfidfVectorizer(sublinear_tf=True, **options)
        expected += (vectors.fit_transform(known) @ vectors.transform([asked]).T).toarray()[:, 0]
    np.testing.assert_allclose(Memory(PAIRS).likeness(asked), expected, atol=1e-12)


def test_what_is_read_of_a_text() -> None:
    memory = Memory(PAIRS)
    assert memory.asked("Move  the\nfolder") == "Datei verschieben\nMove the folder"
    assert memory.asked("xyzzy") == "\nxyzzy", "nothing in common with any"
    assert Memory(PAIRS, language="de").asked("Hello") == "Hallo\nde\nHello"
    assert Memory(PAIRS, language="de", matches=False).asked("Hello") == "de\nHello"


def test_no_pair_has_itself_as_a_match_nor_one_with_its_source_or_target() -> None:
    memory = Memory(PAIRS)
    own = memory.own()
    assert [pair.target for pair in own] == [pair.target for pair in PAIRS]
    groups = linked((pair.source, pair.target) for pair in PAIRS)
    assert groups[0] == groups[3] == groups[4] != groups[1]
    for number, (pair, read) in enumerate(zip(PAIRS, own, strict=True)):
        match, source = read.source.split("\n")
        assert source == pair.source
        likeness = np.where([group == groups[number] for group in groups], 0, memory.likeness(pair.source))
        assert match == (PAIRS[int(likeness.argmax())].target if likeness.any() else "")
    assert own[0].source == "Datei löschen\nDelete the folder"


def test_practice_has_its_own_target_with_words_missing_or_wrong() -> None:
    words = [f"wort{number}" for number in range(20)]
    pairs = [
        Pair(f"text {number} of {number % 7}", " ".join(words[number % 20 :] + words[: number % 20]))
        for number in range(300)
    ]
    memory = Memory(pairs)
    plain, mixed = memory.own(repeat=2), memory.own(repeat=2, practice=0.5)
    assert mixed == memory.own(repeat=2, practice=0.5) != memory.own(repeat=2, practice=0.5, seed=1)
    changed = [new for new, old in zip(mixed, plain, strict=True) if new != old]
    assert 0.4 < len(changed) / 600 < 0.55
    kept = [len(new.source.split("\n")[0].split()) / 20 for new in changed]
    assert 0.5 < min(kept) < 0.85, "of up to half of the words half are left out"
    assert np.mean(kept) == pytest.approx(0.875, abs=0.03)


def test_it_is_kept_in_a_folder(tmp_path: Path) -> None:
    assert Memory.load(tmp_path) is None
    Memory(PAIRS, language="de").save(tmp_path)
    again = Memory.load(tmp_path)
    assert again is not None
    assert again.asked("Move the folder") == Memory(PAIRS, language="de").asked("Move the folder")
    (tmp_path / FILE).write_text("{}")
    Memory([], matches=False, language="de").save(tmp_path)
    assert Memory.load(tmp_path).asked("a") == "de\na"  # type: ignore[union-attr]
    (tmp_path / FILE).write_text('{"language": "de"}\n["a"]\n')
    with pytest.raises(UserError, match=r"memory.jsonl cannot be read .*: restore it"):
        Memory.load(tmp_path)


def test_what_is_held_out_is_held_out_in_all_languages(tmp_path: Path) -> None:
    """Of real catalogues, whose languages share English sources, and some of them targets."""
    options = {"tokenizer": Byte(), "cache_dir": str(tmp_path), "seq_len": 10_000}
    alone = Catalogues(**options)
    data = Catalogues(also=["nl", "lb"], repeat=2, memory=True, practice=0.1, **options)
    for each in (alone, data):
        each.prepare()
    held = range(len(alone.samples("validation")))
    assert data.references(held) == alone.references(held), "the same pairs as without other languages"
    sources, targets = ({letters(text) for text in side} for side in zip(*data.references(held), strict=True))
    seen = []
    train = data.samples("train")
    for number in range(len(train)):
        read, target = (data.tokenizer.decode(ids) for ids in train.ids(number))
        match, language, source = read.split("\n")
        assert letters(source) not in sources
        assert letters(target) not in targets
        assert letters(match) not in targets or language != "de"
        seen.append(language)
    assert seen.count("de") == 2 * len(alone.samples("train"))
    given = [pair for pairs in data.others().values() for pair in pairs]
    held_too = [pair for pair in given if letters(pair.source) in sources or letters(pair.target) in targets]
    assert any(letters(pair.source) not in sources for pair in held_too), "some for their targets alone"
    assert seen.count("nl") + seen.count("lb") == len(given) - len(held_too) > 2000


def test_other_ways_to_read_the_same_pairs_are_other_data() -> None:
    options: list[dict[str, Any]] = [{}, {"also": ["lb"]}, {"memory": True}]
    options += [{"memory": True, "practice": 0.2}, {"memory": True, "repeat": 2}, {"also": ["lb"], "repeat": 2}]
    names = [Catalogues(tokenizer=Byte(), **chosen).fingerprint() for chosen in options]
    assert len(set(names)) == len(names)


def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("a\tb\n")
    with pytest.raises(UserError, match=r"data.practice=0.5 is .* data.memory=true: set both"):
        PairFiles(tokenizer=Byte(), path=str(path), practice=0.5)
    with pytest.raises(UserError, match=r"data.also has de .*name each once"):
        Catalogues(tokenizer=Byte(), also=["de"])
    with pytest.raises(UserError, match=r"data.also=xx has no catalogue in django.*set it to one of .*fr"):
        Catalogues(tokenizer=Byte(), also=["xx"]).others()
    with pytest.raises(UserError, match=r"data.repeat=2 is for data.also or data.memory=true: set one"):
        Catalogues(tokenizer=Byte(), repeat=2)
    with pytest.raises(UserError, match="repeat=0 is too small"):
        Catalogues(tokenizer=Byte(), repeat=0)
