"""What becomes of inputs: one that cannot be read has its error in its line, is counted, and ends nothing by itself."""

import io
import json
import sys
from pathlib import Path

import pytest

from txtrain.errors import UserError
from txtrain.predict import command
from txtrain.predict.inputs import Input, find_inputs, parse_line, read_inputs
from txtrain.predict.predictor import Predictor, text_of


class Lengths(Predictor):
    """How long a text is, or a name of a file."""

    def __init__(self, trained=None):
        super().__init__(trained)
        self.batches = []

    def read(self, given):
        text = str(given) if isinstance(given, Path) else text_of(given)
        if "bad" in text:
            raise UserError(f"{text} cannot be read (it is bad)")
        return text

    def predict(self, inputs):
        self.batches.append(len(inputs))
        return [{"length": len(text)} for text in inputs]


def inputs(*texts):
    return [Input(given=text, place=f"f.txt line {number}") for number, text in enumerate(texts, start=1)]


def lines(output):
    return [json.loads(line) for line in output.getvalue().splitlines()]


def test_one_that_cannot_be_read_has_its_error_in_its_place():
    output, predictor = io.StringIO(), Lengths()
    bad = command.tell(predictor, inputs("a", "bad", "abc"), output)
    assert bad == ["f.txt line 2: bad cannot be read (it is bad)"]
    assert lines(output) == [
        {"text": "a", "length": 1},
        {"text": "bad", "error": bad[0]},
        {"text": "abc", "length": 3},
    ]
    assert predictor.batches == [2]


def test_none_is_given_to_the_model_where_none_can_be_read():
    predictor = Lengths()
    assert len(command.tell(predictor, inputs("bad", "too bad"), io.StringIO())) == 2
    assert predictor.batches == []


def test_it_ends_there_if_that_is_asked_for():
    output = io.StringIO()
    with pytest.raises(UserError, match="line 2: bad cannot be read"):
        command.tell(Lengths(), inputs("a", "bad"), output, stop=True)
    assert not output.getvalue()


def test_a_file_is_named_once():
    given = Input(given=Path("bad.wav"), place="bad.wav")
    assert command.tell(Lengths(), [given], io.StringIO()) == ["bad.wav cannot be read (it is bad)"]


def test_they_are_counted_in_one_line(capsys):
    command.count(["a is bad"], 3)
    assert capsys.readouterr().err.startswith("warning: 1 of 3 inputs cannot be read and have an error in their line")
    with pytest.raises(UserError, match="none of the 2 inputs can be read: the first is a is bad"):
        command.count(["a is bad", "b is bad"], 2)
    with pytest.raises(UserError, match=r"^a is bad$"):
        command.count(["a is bad"], 1)


def test_each_line_is_answered_before_the_next_is_read(monkeypatch):
    """And one that is no JSON, or cannot be read, is told, and the next one answered."""
    output, seen = io.StringIO(), []
    asked = iter(["abc\n", "\n", "{\n", '{"text": "bad", "id": 7}\n', '{"text": 3}\n', '{"text": "a", "id": 8}\n'])

    class Asking:
        def readline(self):
            seen.append(len(lines(output)))
            return next(asked, "")

    monkeypatch.setattr(sys, "stdin", Asking())
    command.answer(Lengths(), output)
    assert seen == [0, 1, 1, 2, 3, 4, 5]
    first, broken, bad, number, last = lines(output)
    assert first == {"text": "abc", "length": 3}
    assert broken["error"].startswith("line 3 is not JSON")
    assert bad == {"text": "bad", "id": 7, "error": "line 4: bad cannot be read (it is bad)"}
    assert number == {"text": 3, "error": "line 5: text is int, not text: give a text"}
    assert last == {"text": "a", "id": 8, "length": 1}


def test_a_line_names_a_file_where_inputs_are_files(tmp_path):
    assert parse_line((1, "a/b.png"), {".png"}).record == {"file": "a/b.png"}
    assert parse_line((1, "a/b.png"), set()).record == {"text": "a/b.png"}
    (tmp_path / "names.txt").write_text("a.png\n\nb.png\n")
    found = list(read_inputs([tmp_path / "names.txt"], {".png"}))
    assert [item.given for item in found] == [Path("a.png"), Path("b.png")]
    assert found[1].place.endswith("names.txt line 3")


def test_folders_give_their_files_links_to_nowhere_too(tmp_path):
    (tmp_path / "deep.png").mkdir()
    for name in ("b.png", "deep.png/a.PNG", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "link.png").symlink_to("nowhere.png")
    found = find_inputs([str(tmp_path)], {".png"})
    assert [file.name for file in found] == ["b.png", "a.PNG", "link.png"]


@pytest.mark.parametrize("name", ["empty.txt", "empty.jsonl", "header.csv"])
def test_a_file_without_an_input_is_told(tmp_path, name):
    (tmp_path / name).write_text("text,label\n" if name.startswith("header") else "\n")
    with pytest.raises(UserError, match=f"{name} is empty"):
        list(read_inputs([tmp_path / name], set()))
