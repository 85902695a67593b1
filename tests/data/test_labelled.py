"""Labelled and tagged texts: what is read, split and refused, and what the parser says of names."""

import ast
import json
from types import SimpleNamespace

import numpy as np
import pytest

from txtrain.data import functions, names
from txtrain.data.functions import Function
from txtrain.data.labelled_files import LabelledFiles
from txtrain.data.labels import split_by_group
from txtrain.data.packing import IGNORED, PADDING
from txtrain.data.padded import RowMaker
from txtrain.data.tagged_files import TaggedFiles
from txtrain.data.tokenizer import Byte
from txtrain.errors import UserError


def labelled(path, **options):
    return LabelledFiles(path=str(path), tokenizer=Byte(), cache_dir=str(path.parent / "cache"), **options)


def tagged(path, **options):
    return TaggedFiles(path=str(path), tokenizer=Byte(), cache_dir=str(path.parent / "cache"), **options)


def lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_each_label_is_on_both_sides_and_each_text_on_one(tmp_path):
    rows = [{"text": f"text {number % 40}", "label": "rare" if number % 40 < 4 else "common"} for number in range(80)]
    data = labelled(lines(tmp_path / "rows.jsonl", rows), validation_fraction=0.25)
    data.prepare()
    sides = {split: data.samples(split) for split in ("train", "validation")}
    texts = {split: {bytes(side.first(i).tolist()) for i in range(len(side))} for split, side in sides.items()}
    assert not texts["train"] & texts["validation"]
    assert [side.counts(data.labels) for side in sides.values()] == [[54, 6], [18, 2]]
    assert data.labels == ["common", "rare"]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_tables_are_read_as_they_are(tmp_path, kind):
    mark = {"csv": ",", "tsv": "\t"}[kind]
    path = tmp_path / f"rows.{kind}"
    quoted, text = {
        "csv": ('"two, ""quoted"" words\nand a line"', 'two, "quoted" words\nand a line'),
        "tsv": ('"two, ""quoted"" words', '"two, ""quoted"" words'),
    }[kind]
    path.write_text(
        "\ufeff" + mark.join(["class", "words"]) + "\n" + f"1{mark}{quoted}\n0{mark}plain\n1{mark}more\n0{mark}b\n"
    )
    data = labelled(path, text="words", label="class", validation_fraction=0.5)
    data.prepare()
    assert data.labels == ["0", "1"]
    read = {
        bytes(data.samples(split).first(i).tolist()).decode() for split in ("train", "validation") for i in range(2)
    }
    assert read == {text, "plain", "more", "b"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "a", "label": "x"}, {"text": "b"}], {}, "jsonl line 2 has no label: set data.label to one of text"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": None}], {}, "line 2: label is nothing, not a label"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], {}, "has only the label x: give examples of two"),
        ([{"text": 7, "label": "x"}], {}, "line 1: text is int, not text"),
        ([{"text": " ", "label": "x"}], {}, "line 1: text is empty: remove the row"),
        (["{"], {}, "line 1 is not JSON"),
        ([{"text": "a", "label": "x"}], {"pair": "other"}, "line 1 has no other: set data.pair"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(tmp_path, rows, options, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        labelled(lines(tmp_path / "rows.jsonl", rows), **options).prepare()


def test_labels_that_training_does_not_have_are_refused(tmp_path):
    train = lines(tmp_path / "rows.jsonl", [{"text": f"t{n}", "label": "xy"[n % 2]} for n in range(6)])
    other = lines(tmp_path / "more.jsonl", [{"text": "t", "label": "z"}])
    with pytest.raises(UserError, match=r"more.jsonl line 1 has the label z, which is none of x, y"):
        labelled(train, validation_path=str(other)).prepare()


def test_equal_sentences_are_on_one_side_however_few_there_are(tmp_path):
    """A fraction that holds out none by its hash holds out one all the same, with those that are equal to it."""
    for words in (("Ada", "Bob"), ("Eve", "Kim"), ("Ann", "Joe")):
        sentences = [{"tokens": [word, "ran"], "tags": ["B-PER", "O"]} for word in words for _ in range(5)]
        data = tagged(lines(tmp_path / f"{words[0]}.jsonl", sentences), validation_fraction=0.001)
        data.prepare()
        assert [len(data.samples(split)) for split in ("train", "validation")] == [5, 5]


def test_files_to_validate_on_without_an_example_are_told(tmp_path):
    train = lines(tmp_path / "rows.jsonl", [{"text": f"t{n}", "label": "xy"[n % 2]} for n in range(6)])
    other = lines(tmp_path / "more.jsonl", [])
    with pytest.raises(UserError, match=r"data\.validation_path has nothing to validate on"):
        labelled(train, validation_path=str(other)).prepare()


def test_long_pairs_are_cut_as_bert_cuts_them():
    """Its loop takes the last token of the longer text until both fit."""
    tokenizer = Byte()
    tokenizer.need("class", "separator")
    tokenizer.fit()
    draw = np.random.default_rng(0)
    for _ in range(50):
        first, second = (draw.integers(0, 256, draw.integers(0, 30)) for _ in range(2))
        row = RowMaker(tokenizer, seq_len=24).batch([(first, second)], types=True)
        one, other = list(first), list(second)
        while len(one) + len(other) > 21:
            (one if len(one) > len(other) else other).pop()
        opening, closing = tokenizer.special("class"), tokenizer.special("separator")
        expected = [opening, *one, closing, *other, closing]
        real = row["padding"][0]
        assert row["tokens"][0, real].tolist() == expected
        assert row["types"][0, real].tolist() == [0] * (len(one) + 2) + [1] * (len(other) + 1)


def test_tags_stand_at_the_first_token_of_their_word(tmp_path):
    rows = [{"tokens": ["Ada", "wrote", "it"], "tags": ["B-PER", "O", "O"]}] * 2 + [{"tokens": ["no"], "tags": ["O"]}]
    data = tagged(lines(tmp_path / "tags.jsonl", rows), seq_len=12, validation_fraction=0.5)
    data.prepare()
    found = []
    for split in ("train", "validation"):
        samples = data.samples(split)
        batch = samples.batch(np.array([*range(len(samples)), PADDING]))
        assert (batch["targets"][-1] == IGNORED).all()
        for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist(), strict=True):
            found += [(chr(tokens[place + 1]), data.labels[tag]) for place, tag in enumerate(targets) if tag >= 0]
    # A space begins each word, so that the letter comes after it; long sentences are cut, and nothing is lost.
    assert sorted(found) == sorted([("A", "B-PER"), ("w", "O"), ("i", "O")] * 2 + [("n", "O")])


def test_conll_files_are_read(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("-DOCSTART- -X- O O\n\nAda NNP B-PER\nwrote VBD O\n\nit PRP O\nsays VBZ O\n")
    sentences = list(tagged(path).sentences())
    assert [(list(s.words), list(s.tags)) for s in sentences] == [
        ([" Ada", " wrote"], ["B-PER", "O"]), ([" it", " says"], ["O", "O"]),
    ]  # fmt: skip
    path.write_text("Ada B-PER\nwrote\n")
    with pytest.raises(UserError, match="line 2 is wrote: give a word and its tag"):
        list(tagged(path).sentences())


def test_groups_are_never_on_both_sides():
    groups = [f"file {number // 5}" for number in range(100)]
    held_out = split_by_group(groups, ["ab"[number // 50] for number in range(100)], 0.2)
    sides = {group: set(held_out[[other == group for other in groups]]) for group in groups}
    assert all(len(side) == 1 for side in sides.values())
    assert held_out.sum() == 20
    assert held_out[:50].sum() == held_out[50:].sum() == 10


SOURCE = '''def total(self, values, *, start=0):
    """Not read."""
    count = len(values)
    for value in values:
        start += value.size.real
    return self.round(start, count=count) + LIMIT
'''


def test_names_are_what_pythons_parser_says():
    function = Function(node=ast.parse(SOURCE).body[0], source=SOURCE, file="a.py")
    sentence = names.tag_function(function)
    found = [(word.strip(), tag) for word, tag in zip(sentence.words, sentence.tags, strict=True) if tag != "O"]
    assert found == [
        ("total", "B-FUNCTION"), ("self", "B-PARAMETER"), ("values", "B-PARAMETER"), ("start", "B-PARAMETER"),
        ("count", "B-LOCAL"), ("len", "B-BUILTIN"), ("values", "B-PARAMETER"),
        ("value", "B-LOCAL"), ("values", "B-PARAMETER"),
        ("start", "B-PARAMETER"), ("value", "B-LOCAL"),
        ("size", "B-ATTRIBUTE"), (".", "I-ATTRIBUTE"), ("real", "I-ATTRIBUTE"),
        ("self", "B-PARAMETER"), ("round", "B-METHOD"), ("start", "B-PARAMETER"),
        ("count", "B-KEYWORD"), ("count", "B-LOCAL"),
        ("LIMIT", "B-GLOBAL"),
    ]  # fmt: skip
    assert "Not read" not in "".join(sentence.words)


def test_functions_come_from_packages_with_many(monkeypatch):
    """A file with functions of two packages; copies and what is within other functions are left out."""
    made = [f"{package}/m{number}.py" for package in ("one", "two") for number in range(3)]
    monkeypatch.setattr(functions, "FILES", 2)
    monkeypatch.setattr(functions, "FUNCTIONS", 4)
    monkeypatch.setattr(functions, "library_files", lambda _: [*made, "alone.py"])
    monkeypatch.setattr(functions, "name_in_library", str)
    text = (
        "class A:\n    def f(self):\n        def inner():\n            pass\n        return {0!r}\n\n"
        "def g(x):\n    a = 1\n    b = 2\n    return {0!r}\n"
    )
    monkeypatch.setattr(functions, "read_source", text.format)
    found = list(functions.PackageOfFunction.examples(SimpleNamespace(modules="common")))
    assert len(found) == 12
    assert {example.label for example in found} == {"one", "two"}
    assert {example.group for example in found} == set(made)
    assert found[0].text.startswith("def f(self):\n    def inner")
