"""What becomes of inputs: one that cannot be read has its error in its line, is counted, and ends nothing by itself."""

import io
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from txtrain.cli import main
from txtrain.errors import UserError
from txtrain.predict import command
from txtrain.predict.inputs import Input, find_inputs, parse_line, read_inputs
from txtrain.predict.output import Lines
from txtrain.predict.predictor import Predictor, text_of


class Lengths(Predictor):
    """How long a text is, or a name of a file."""

    def __init__(self, trained=None, *, top: int = 1):
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
    bad = command.tell(predictor, inputs("a", "bad", "abc"), Lines(output))
    assert bad == ["f.txt line 2: bad cannot be read (it is bad)"]
    assert lines(output) == [
        {"text": "a", "length": 1},
        {"text": "bad", "error": bad[0]},
        {"text": "abc", "length": 3},
    ]
    assert predictor.batches == [2]


def test_none_is_given_to_the_model_where_none_can_be_read():
    predictor = Lengths()
    assert len(command.tell(predictor, inputs("bad", "too bad"), Lines(io.StringIO()))) == 2
    assert predictor.batches == []


def test_it_ends_there_if_that_is_asked_for():
    output = io.StringIO()
    with pytest.raises(UserError, match="line 2: bad cannot be read"):
        command.tell(Lengths(), inputs("a", "bad"), Lines(output), stop=True)
    assert not output.getvalue()


def test_a_file_is_named_once():
    given = Input(given=Path("bad.wav"), place="bad.wav")
    assert command.tell(Lengths(), [given], Lines(io.StringIO())) == ["bad.wav cannot be read (it is bad)"]


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
    command.answer(Lengths(), Lines(output))
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


@pytest.fixture
def predict(tmp_path, monkeypatch, capsys):
    """Runs the command with a model that tells lengths → its exit code, and what it prints to both streams."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        command, "load_trained", lambda *_, **__: SimpleNamespace(task=SimpleNamespace(predictor=Lengths))
    )

    def predict(*words):
        code = main(["predict", "RUN", *words])
        return code, *capsys.readouterr()

    return predict


def test_typed_texts_are_answered_in_order_between_files(predict):
    Path("a.txt").write_text("of a file\n")
    flags = ["--text", "a.txt", "--text=-5"]
    code, told, _ = predict("and more", "a.txt", "2 + 2 = 4", "top=3", *flags, "--", "-7 degrees")
    assert code == 0
    texts = [json.loads(line)["text"] for line in told.splitlines()]
    assert texts == ["and more", "of a file", "2 + 2 = 4", "-7 degrees", "a.txt", "-5"]


def test_a_table_is_written_where_the_name_says_so(predict):
    assert predict("a, b", "bad", "--output", "x.csv")[:2] == (0, "")
    assert Path("x.csv").read_text() == 'text,length,error\n"a, b",4,\nbad,,the text: bad cannot be read (it is bad)\n'
    code, _, error = predict("x.csv", "--output", "x.csv")
    assert code == 1 and "is one of the inputs" in error
    assert Path("x.csv").read_text().startswith("text,length")


@pytest.mark.parametrize(
    "words, told",
    [
        ([], "predict needs a model and inputs: type txtrain predict runs/NAME/RUN FILE, TEXT, or - for lines\n"),
        (["x=5 is true"], "if it is a text, type --text 'x=5 is true'"),
        (["a", "tpo=5"], "did you mean top?; if it is a text, type --text tpo=5"),
        (["a", "data.seq_len=5"], "if it is a text, type --text data.seq_len=5"),
        (["-", "a"], "- is standard input, and other inputs are named too"),
        (["-", "--text", "a"], "- is standard input, and other inputs are named too"),
        ([""], "an input is empty"),
        (["caf\udce9"], "it has bytes or escapes that are no Unicode text: convert it to UTF-8"),
        (['{"text": "\\ud800"}'], "it has bytes or escapes that are no Unicode text: convert it to UTF-8"),
    ],
)
def test_a_mistake_is_one_line(words, told, predict):
    code, _, error = predict(*words)
    assert code == 1 and told in error and error.count("\n") == 1


def test_progress_goes_to_standard_error(predict, monkeypatch):
    """So that standard output holds the answers alone."""
    monkeypatch.setattr("txtrain.data.progress.INTERVAL", 0.01)
    slow = Lengths.predict
    monkeypatch.setattr(Lengths, "predict", lambda self, inputs: time.sleep(0.3) or slow(self, inputs))
    code, told, error = predict("abc")
    assert (code, json.loads(told)) == (0, {"text": "abc", "length": 3})
    assert "predicting 0 %" in error
