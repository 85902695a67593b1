"""What a typed word is: a file, a folder, a glob, a JSON object or a text."""

from pathlib import Path

import pytest

from txtrain.errors import UserError
from txtrain.predict.inputs import as_text, count_inputs, find_inputs

PICTURES = frozenset({".png"})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my notes.txt").write_text("a\nb\n")
    Path("deep").mkdir()
    Path("deep/rows.jsonl").write_text('{"text": "a"}\n')
    Path("seen.png").touch()
    return tmp_path


@pytest.mark.parametrize(
    "word",
    [
        "fine",
        "yes and/or no",
        "It ends here.",
        "3.14 e.g. U.S.",
        "Really?",
        "2 * 3 = 6",
        "[MASK] is a city",
        "~ is a tilde",
        "x" * 5000,
        "two\nlines",
        "日本語",
    ],
)
def test_a_word_that_is_no_path_is_a_text(word, folder):
    [found] = find_inputs([word], frozenset())
    assert found.given == word and found.record == {"text": word}


@pytest.mark.parametrize(
    "word",
    ["and/or", "nothing.txt", "my other notes.txt", "gone*", "/my dir/file", "./a b", "~/a b", "my dir/*", "no.csv.gz"],
)
def test_what_looks_like_a_path_and_is_none_is_an_error_that_says_how_to_type_a_text(word, folder):
    with pytest.raises(UserError, match="does not exist") as told:
        find_inputs([word], frozenset())
    typed = str(told.value).partition("type --text ")[2]
    assert typed.strip("'") == word
    assert as_text(word, frozenset()).given == word


def test_paths_are_files_whatever_is_typed_beside_them(folder):
    found = find_inputs(["my notes.txt", "a text", "deep", '{"text": "b", "id": 1}', "*.txt"], frozenset())
    assert [item if isinstance(item, Path) else item.given for item in found] == [
        Path("my notes.txt"),
        "a text",
        Path("deep/rows.jsonl"),
        {"text": "b", "id": 1},
        Path("my notes.txt"),
    ]
    assert count_inputs(found, frozenset()) == 2 + 1 + 1 + 1 + 2


def test_braces_that_are_no_json_can_be_typed_as_a_text(folder):
    with pytest.raises(UserError, match=r"is not JSON .* --text '{x}'"):
        find_inputs(["{x}"], frozenset())
    assert as_text("{x}", frozenset()).given == "{x}"


@pytest.mark.parametrize("word", ["", " ", "\n"])
def test_an_empty_word_is_neither_a_text_nor_this_folder(word, folder):
    with pytest.raises(UserError, match="an input is empty"):
        find_inputs([word], frozenset())
    with pytest.raises(UserError, match="--text is empty"):
        as_text(word, frozenset())


def test_no_word_is_a_text_where_inputs_are_files(folder):
    assert find_inputs(["seen.png"], PICTURES) == [Path("seen.png")]
    with pytest.raises(UserError, match="a cat does not exist: give a file") as told:
        find_inputs(["a cat"], PICTURES)
    assert "--text" not in str(told.value)
    with pytest.raises(UserError, match=r"--text is for models of text: give a file of \.png"):
        as_text("a cat", PICTURES)
