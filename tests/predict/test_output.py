"""Tables and lines of predictions hold what was said, and a file that cannot be written is one line."""

import csv
import json
import os
from pathlib import Path

import pytest

from txtrain.data.tables import read_table
from txtrain.errors import UserError
from txtrain.predict.output import open_output

RECORDS = [
    {"text": 'a, "b"', "label": "x", "probabilities": {"x": 0.5, "y": 0.25}},
    {"text": "two\nlines\rand\r\nmore\u2028", "id": None, "error": "it is bad"},
    {"text": "", "id": 7, "label": "ü"},
]


def test_a_table_has_all_columns_and_every_value(tmp_path):
    path = tmp_path / "x.CSV"
    with open_output(path) as output:
        for record in RECORDS:
            output.write(record)
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["text", "label", "probabilities", "id", "error"]
    assert rows == [
        ['a, "b"', "x", '{"x": 0.5, "y": 0.25}', "", ""],
        ["two\nlines\rand\r\nmore\u2028", "", "", "", "it is bad"],
        ["", "ü", "", "7", ""],
    ]
    assert [row["text"] for _, row in read_table(path)] == [record["text"] for record in RECORDS]


def test_any_other_file_has_a_line_of_json_for_each(tmp_path):
    path = tmp_path / "x.jsonl"
    with open_output(path) as output:
        for number, record in enumerate(RECORDS, start=1):
            output.write(record)
            assert path.read_text().count("\n") == number
    assert [json.loads(line) for line in path.read_text().split("\n")[:-1]] == RECORDS


def test_a_table_has_what_was_said_before_an_error(tmp_path):
    output = open_output(tmp_path / "x.csv")
    output.__enter__().write(RECORDS[0])
    assert not output.__exit__(KeyError, KeyError(), None)
    assert (tmp_path / "x.csv").read_text().startswith("text,label,probabilities\n")


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_half_a_surrogate_pair_is_escaped(name, tmp_path):
    with open_output(tmp_path / name) as output:
        output.write({"text": "\ud800", "error": "no text"})
    assert "\\ud800" in (tmp_path / name).read_text()


@pytest.mark.parametrize(
    "name, told",
    [
        ("gone/x.csv", r"cannot be written \(No such file"),
        ("folder.csv", r"cannot be written \(Is a directory"),
        ("x.tsv", r"\.tsv cannot be written: name a \.csv file, or \.jsonl"),
        ("x.parquet", r"\.parquet cannot be written"),
        ("in.csv", "is one of the inputs, which it would overwrite"),
        ("link.csv", "is one of the inputs"),
    ],
)
def test_what_cannot_be_written_is_one_line(name, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.csv").mkdir()
    Path("in.csv").write_text("text\na\n")
    Path("link.csv").symlink_to("in.csv")
    with pytest.raises(UserError, match=told), open_output(Path(name), [Path("in.csv")]):
        pass
    assert Path("in.csv").read_text() == "text\na\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full disk, as Linux has it")
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_full_disk_is_one_line(name, tmp_path):
    (tmp_path / name).symlink_to("/dev/full")
    with (
        pytest.raises(UserError, match=r"cannot be written \(No space left on device\): name another file"),
        open_output(tmp_path / name) as output,
    ):
        output.write(RECORDS[0])
