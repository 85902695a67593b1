"""The same file is read the same way by training, predictions and prompts, whatever characters are in its lines."""

import csv
import gzip
import io
import json
import os
from pathlib import Path

import pytest

from txtrain.data.chat import ChatData
from txtrain.data.documents import read_documents
from txtrain.data.files import find_files, read_jsonl, read_lines
from txtrain.data.labelled_files import LabelledFiles
from txtrain.data.pair_files import PairFiles
from txtrain.data.tables import read_table
from txtrain.data.tagged_files import TaggedFiles
from txtrain.data.text import TextFiles
from txtrain.data.tokenizer import Byte
from txtrain.errors import UserError
from txtrain.generate.prompts import read_prompts
from txtrain.predict.inputs import find_inputs, read_inputs

MARK = "\ufeff"
ODD = ["a\x0cb", "a\u2028b", "a\x85b", "a\x1cb", 'say "no', "a\rb", "\xa0a", "plain"]


def write(path: Path, text: str, pack: bool = False) -> Path:
    path = path.with_name(path.name + ".gz") if pack else path
    path.write_bytes(gzip.compress(text.encode()) if pack else text.encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", MARK])
@pytest.mark.parametrize("pack", [False, True])
def test_lines_of_text(tmp_path, end, mark, pack):
    file = write(tmp_path / "a.txt", mark + end.join(ODD) + end, pack)
    assert [line for _, line in read_lines(file)] == ODD
    assert [prompt for _, prompt in read_prompts(str(file), chat=False)] == ODD
    assert [item.given for item in read_inputs(find_inputs([str(file)], set()), set())] == ODD
    assert list(read_documents(file, "")) == [end.join(ODD) + end]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", MARK])
@pytest.mark.parametrize("pack", [False, True])
def test_lines_of_json(tmp_path, end, mark, pack):
    rows = [{"prompt": text, "label": "x"} for text in ODD]
    lines = [json.dumps(row, ensure_ascii=False).replace(", ", ",\r ", 1) for row in rows]
    file = write(tmp_path / "a.jsonl", mark + end.join(lines), pack)
    assert [row for _, row in read_jsonl(file)] == rows
    assert [row for _, row in read_table(file)] == rows
    assert list(read_documents(file, "prompt")) == ODD
    assert [prompt for _, prompt in read_prompts(str(file), chat=False)] == ODD
    assert [item.given for item in read_inputs(find_inputs([str(file)], set()), set())] == rows


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", MARK])
@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_tables(tmp_path, end, mark, kind):
    # Where a lone carriage return is no line end, .csv wants quotes around it, which Python's writer does not set.
    rows = [{"text": text, "label": "x"} for text in ODD if kind == "tsv" or "\r" not in text]
    if kind == "tsv":
        made = end.join(["text\tlabel", *(f"{row['text']}\t{row['label']}" for row in rows)]) + end
    else:
        rows += [{"text": "two\nlines, a comma", "label": "y"}]
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, ["text", "label"], lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
        made = stream.getvalue()
    file = write(tmp_path / f"a.{kind}", mark + made)
    assert [row for _, row in read_table(file)] == rows
    assert [item.given for item in read_inputs(find_inputs([str(file)], set()), set())] == rows
    examples = LabelledFiles(path=str(file), tokenizer=Byte()).examples()
    assert [(example.text, example.label) for example in examples] == [tuple(row.values()) for row in rows]


@pytest.mark.parametrize("mark", ["", MARK])
def test_pairs(tmp_path, mark):
    texts = [text for text in ODD if text == text.strip()]
    file = write(tmp_path / "a.tsv", mark + "".join(f"{text}\tx\n" for text in texts))
    assert [pair.source for pair in PairFiles(path=str(file), tokenizer=Byte()).pairs()] == texts
    sides = [str(write(tmp_path / name, mark + "".join(f"{text}\n" for text in texts))) for name in ("a.en", "a.de")]
    pairs = PairFiles(path=sides[0], target_path=sides[1], tokenizer=Byte()).pairs()
    assert [tuple(pair[:2]) for pair in pairs] == [(text, text) for text in texts]


CONLL = {
    "tabs part the columns": (
        "New York City\tB-LOC\n1\xa0000\tB-NUM\n\nI\tO\n",
        [["New York City", "1\xa0000"], ["I"]],
    ),
    "spaces part them": ("EU NNP B-ORG\nrejects  VBZ\tO \n", None),
    "blanks part them": ("EU NNP B-ORG\n1\xa0000 CD B-NUM\nx\x0cy Z O\n", [["EU", "1\xa0000", "x\x0cy"]]),
    "comments": ("# id 12\nEU NNP B-ORG\n# # O\n#text\nx Y O\n", [["EU", "#", "x"]]),
    "comments beside tabs": ("# text = a b\n#\tO\nb\tO\n", [["#", "b"]]),
    "a mark, DOCSTART, line ends": (f"{MARK}-DOCSTART- -X- O\r\n\r\na O\r\n \r\nb O\r\n", [["a"], ["b"]]),
}


@pytest.mark.parametrize("name", CONLL)
def test_tagged_words(tmp_path, name):
    text, expected = CONLL[name]
    file = write(tmp_path / "a.conll", text)
    data = TaggedFiles(path=str(file), tokenizer=Byte())
    if expected is None:  # a tab beside spaces: what is before the first tab would be a word
        with pytest.raises(UserError, match=r"line 1 is EU NNP B-ORG: give a word, a tab and its tag in each line"):
            list(data.sentences())
        return
    assert [[word[1:] for word in found.words] for found in data.sentences()] == expected


def test_a_column_that_stands_twice_is_refused(tmp_path):
    for kind, by in (("csv", ","), ("tsv", "\t")):
        file = write(tmp_path / f"a.{kind}", f"text{by}label{by}text\na{by}x{by}b\n")
        with pytest.raises(UserError, match="has the column text twice"):
            list(read_table(file))
        with pytest.raises(UserError, match="has the column text twice"):
            list(read_inputs([file], set()))


def test_rows_of_another_length_and_other_encodings_are_named_by_line(tmp_path):
    with pytest.raises(UserError, match=r"a.tsv line 3 has 3 columns and the first line has 2, text, label"):
        list(read_table(write(tmp_path / "a.tsv", "text\tlabel\na\tx\na\tb\tx\n")))
    (tmp_path / "b.tsv").write_bytes(b"text\tlabel\na\tx\n\xe9\tx\n")
    with pytest.raises(UserError, match=r"b.tsv line 3 is not UTF-8 text \(byte 0\)"):
        list(read_table(tmp_path / "b.tsv"))
    with pytest.raises(UserError, match=r"b.tsv line 3 is not UTF-8"):
        list(read_inputs([tmp_path / "b.tsv"], set()))


def test_what_is_hidden_is_passed_over_at_every_depth(tmp_path):
    for name in ("a.txt", ".a.txt", ".git/b.txt", "deep/.cache/deeper/c.txt", "deep/d.txt", "deep/._d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, "x\n")
    expected = [tmp_path / "a.txt", tmp_path / "deep" / "d.txt"]
    assert find_files(str(tmp_path)) == expected
    assert find_files(str(tmp_path / "**" / "*.txt")) == expected
    assert find_inputs([str(tmp_path)], set()) == expected
    assert find_files(str(tmp_path / ".a.txt")) == [tmp_path / ".a.txt"]


def test_a_pipe_is_refused_or_passed_over_at_once(tmp_path):
    write(tmp_path / "a.txt", "x\n")
    os.mkfifo(tmp_path / "b.txt")
    assert find_files(str(tmp_path)) == [tmp_path / "a.txt"]
    assert find_inputs([str(tmp_path)], set()) == [tmp_path / "a.txt"]
    with pytest.raises(UserError, match=r"b\.txt is no regular file"):
        find_files(str(tmp_path / "b.txt"))


def test_only_files_that_were_read_otherwise_are_encoded_anew(tmp_path):
    """By their fingerprints, which for all other files are those of before."""

    def marked(kind, name, text, **options):
        path = str(write(tmp_path / name, text))
        return "lines" in kind(path=path, tokenizer=Byte(), **options).identity()

    assert not marked(TextFiles, "a.txt", "a\x0cb\n")
    assert marked(TextFiles, "a.txt", MARK + "ab\n")
    assert not marked(TextFiles, "a.jsonl", MARK + '{"text": "a"}\n')
    assert not marked(LabelledFiles, "a.tsv", "text\tlabel\na\tx\n")
    assert marked(LabelledFiles, "a.tsv", 'text\tlabel\n"a\tx\n')
    assert not marked(LabelledFiles, "a.csv", 'text,label\n"a",x\n')
    assert not marked(PairFiles, "a.tsv", 'a "b\tx\n')
    assert marked(PairFiles, "a.tsv", MARK + "a\tx\n")
    assert not marked(TaggedFiles, "a.conll", "EU NNP B-ORG\nrejects VBZ O\n")
    assert not marked(ChatData, "a.jsonl", '{"messages": []}\n')
    for name in ("tabs part the columns", "blanks part them", "comments", "a mark, DOCSTART, line ends"):
        assert marked(TaggedFiles, "a.conll", CONLL[name][0])
