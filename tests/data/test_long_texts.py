"""Texts that are held in parts are those that are read as a whole, from every kind of file."""

import csv
import io
import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from txtrain.data import csv_rows, documents, lines, long_json, long_text
from txtrain.data.csv_rows import split_csv
from txtrain.data.documents import read_documents
from txtrain.data.lines import whole_lines
from txtrain.data.long_text import LongText, beginning, part_of, parts_of
from txtrain.data.split import Split
from txtrain.errors import UserError

SIGNS = ["a", "é", "日", "🙂", '"', "\\", "\n", "\r\n", ",", "\t", "/", "\x7f", "\u2028", "\\u00e9", "b c "]


@pytest.fixture
def small(monkeypatch):
    """Parts of a few bytes."""
    monkeypatch.setattr(long_text, "PART", 13)
    for module in (documents, long_json):
        monkeypatch.setattr(module, "PART", 13)
    for module in (documents, long_json, long_text):
        monkeypatch.setattr(module, "SHORT", 14)
    monkeypatch.setattr(lines, "BLOCK", 5)


def texts(seed: int, signs: list[str] = SIGNS) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(signs, k=draw.choice([0, 3, 20, 200]))) for _ in range(30)]


def written(folder: Path, kind: str, rows: list[str], *, ascii: bool) -> Path:
    file = folder / f"a{kind}"
    table = [{"other": "x" * (number % 40), "text": row, "n": number} for number, row in enumerate(rows)]
    if kind == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=ascii) + "\n" for row in table)
        file.write_bytes("".join(lines).encode())
    elif kind == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), file, row_group_size=7)
    else:
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, list(table[0]), quoting=csv.QUOTE_ALL if ascii else csv.QUOTE_MINIMAL)
        writer.writeheader()
        writer.writerows(table)
        file.write_bytes(stream.getvalue().encode())
    return file


@pytest.mark.parametrize("ascii", [True, False])
@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".csv"])
def test_rows(tmp_path, small, kind, ascii):
    for seed in range(5):
        rows = texts(seed)
        long = 0
        for text, row in zip(read_documents(written(tmp_path, kind, rows, ascii=ascii), "text"), rows, strict=True):
            long += isinstance(text, LongText)
            for _ in range(2):  # as often as it is read
                assert "".join(parts_of(text)) == row
        assert long > 5


@pytest.mark.parametrize("kind", [".jsonl", ".csv"])
def test_a_long_row_is_freed_when_the_next_is_read(tmp_path, small, kind):
    rows = read_documents(written(tmp_path, kind, ["a" * 100, "b" * 100], ascii=True), "text")
    first = next(rows)
    assert "".join(parts_of(first)) == "a" * 100
    assert "".join(parts_of(next(rows))) == "b" * 100
    with pytest.raises(RuntimeError, match="only until the next one"):
        list(parts_of(first))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_file(tmp_path, small, mark):
    whole = "".join(texts(1))
    (tmp_path / "a.txt").write_bytes((mark + whole).encode())
    [text] = read_documents(tmp_path / "a.txt", "")
    assert isinstance(text, LongText)
    assert "".join(text) == whole
    for start, stop in ((0, 5), (3, 30), (40, None), (len(whole), None), (0, len(whole) + 5)):
        assert "".join(parts_of(part_of(text, start, stop))) == whole[start:stop]
    assert beginning(part_of(text, 10), 17) == whole[10:27]


def test_a_split_does_not_depend_on_how_texts_are_held():
    rows = texts(2)
    held = [LongText(lambda row=row: iter([row[:3], row[3:]])) for row in rows]
    expected = Split.of(((row, row) for row in rows), 0.3)
    found = Split.of(((row, row) for row in held), 0.3)
    assert found.scores.tolist() == expected.scores.tolist()
    assert found.lengths.tolist() == expected.lengths.tolist()
    for most in (None, 50, 400):
        one = ["".join(expected.sample(((row, row) for row in rows), most))]
        assert ["".join(found.sample(((row, row) for row in held), most))] == one


def rows_of(content: bytes) -> list[list[str]] | str:
    try:
        return [
            [field.decode() for field in row]
            for _, row in split_csv(whole_lines(io.BytesIO(content), "a.csv"), Path("a.csv"))
        ]
    except UserError:
        return "refused"


def expected_rows(content: bytes) -> list[list[str]] | str:
    try:
        ended = io.StringIO(content.decode(), newline="\n")  # a lone carriage return ends no line
        return [row for row in csv.reader(ended, strict=True) if row]
    except csv.Error:
        return "refused"


def test_csv_is_parted_as_python_parts_it():
    draw = random.Random(0)
    seen = set()
    for _ in range(20_000):
        content = "".join(
            draw.choices(['"', '"', ",", "\n", "\r\n", "a", "é", " ", "\r"], k=draw.randrange(12))
        ).encode()
        found = rows_of(content)
        assert found == expected_rows(content), content
        seen.add(type(found))
    assert seen == {list, str}


MISTAKES = {
    "cell.jsonl": (b'{"text": "%s"}' % (b"a" * 2100), r"a line 1 has more than|line 1: field text has .* at most"),
    "line.jsonl": (b'{"text": "a", "other": "%s"}' % (b"a" * 5000), r"line 1 has more than .*cut it into several"),
    "cell.csv": (b'text\n"%s"\n' % (b"a\n" * 1100), r"a field has more than .* close its quotes"),
    "cell.tsv": (b"text\n%s\n" % (b"a" * 2100), r"line 2: field text has .* at most"),
    "line.tsv": (b"text\n%s\n" % (b"a" * 5000), r"line 2 has more than .* as a \.txt file"),
    "surrogate.jsonl": (b'{"text": "%s\\ud83d"}' % (b"a" * 40), r"line 1 has \\ud83d.*no character"),
    "low.jsonl": (b'{"text": "%s\\udc00"}' % (b"a" * 40), r"line 1: field text has \\udc00 alone"),
    "open.jsonl": (b'{"text": "%s' % (b"a" * 40), r"line 1 is not JSON \(a string has no end\)"),
    "latin.jsonl": (b'{"text": "%s\xe9"}' % (b"a" * 40), r"line 1 is not UTF-8 text \(byte 40\)"),
    "latin.csv": (b"text\n%s\xe9\n" % (b"a" * 40), r"line 2 is not UTF-8 text \(byte 40\)"),
    "column.csv": (b"body\na\n", r"has no column text: set data.field to one of body"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_long_text_is_one_line(tmp_path, small, monkeypatch, name):
    for module in (lines, documents, csv_rows):
        monkeypatch.setattr(module, "LARGEST_CELL", 2000)
    monkeypatch.setattr(lines, "LARGEST_LINE", 4000)
    content, message = MISTAKES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_documents(tmp_path / name, "text"))
    assert "\n" not in str(caught.value)
