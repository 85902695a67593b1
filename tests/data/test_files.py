"""Formats: what is read from each, and one line for each mistake."""

import gzip
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from txtrain.data import hub
from txtrain.data.documents import read_documents
from txtrain.data.files import find_files
from txtrain.data.files import kind as kind_of
from txtrain.data.hub import HubText
from txtrain.data.long_text import parts_of
from txtrain.data.text import TextFiles
from txtrain.data.tokenizer import Byte
from txtrain.errors import UserError

# With what a reader of types or of lines would change.
ROWS = [
    "first\r\n document\r",
    "второй",
    "",
    "third 🙂\u2028\x85",
    "2020-01-01",
    "true",
    '[1, {"a": null}]',
    "\ufeff1e3\n",
]


def content(kind: str, field: str, folder) -> bytes:
    if kind == ".jsonl":
        return "\n".join(json.dumps({field: row, "other": 1}) for row in ROWS).encode() + b"\n\n"
    if kind == ".parquet":
        path = folder / "made"
        pyarrow.parquet.write_table(pyarrow.table({"other": range(len(ROWS)), field: ROWS}), path)
        return path.read_bytes()
    return "\n".join(ROWS).encode()


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".md", ".jsonl", ".parquet"])
def test_formats(tmp_path, kind, compression):
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[compression]
    file = tmp_path / f"texts{kind}{compression}"
    file.write_bytes(pack(content(kind, "body", tmp_path)))
    expected = ROWS if kind in (".jsonl", ".parquet") else ["\n".join(ROWS)]
    assert list(read_documents(file, "body")) == expected


def test_rows_need_no_network_no_cache_and_no_word(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    asked = []
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, lambda *arguments, **_: asked.append(arguments))
    for kind in (".jsonl", ".jsonl.gz", ".parquet", ".parquet.gz"):
        raw = content(kind.removesuffix(".gz"), "body", tmp_path)
        file = tmp_path / f"texts{kind}"
        file.write_bytes(gzip.compress(raw) if kind.endswith(".gz") else raw)
        before = sorted(tmp_path.iterdir())
        documents = read_documents(file, "body")
        assert next(documents) == ROWS[0]
        documents.close()
        assert sorted(tmp_path.iterdir()) == before
    assert not asked
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a[1].jsonl.zst", "a::b#c *?.jsonl", "{a,b} %20.parquet", ".hidden.jsonl", "B.JSONL"])
def test_names_that_could_be_patterns_or_urls(tmp_path, name, monkeypatch):
    raw = content(kind_of(tmp_path / name), "body", tmp_path)
    (tmp_path / name).write_bytes(zstandard.ZstdCompressor().compress(raw) if name.endswith(".zst") else raw)
    monkeypatch.chdir(tmp_path)
    assert list(read_documents(Path(name), "body")) == ROWS


def test_texts_may_look_like_times_and_other_fields_come_late_and_change(tmp_path):
    (tmp_path / "times.jsonl").write_text('{"text": "2020-01-01"}\n' * 2)
    assert list(read_documents(tmp_path / "times.jsonl", "text")) == ["2020-01-01"] * 2
    rows = [{"text": "a" * (11 << 20), "number": 1}, {"number": "two", "text": "b", "new": {"c": []}}, {"text": "d"}]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = read_documents(tmp_path / "texts.jsonl", "text")
    assert ["".join(parts_of(text)) for text in texts] == [row["text"] for row in rows]


def test_datasets_is_imported_by_nobody_who_does_without(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    program = f"""
import sys
from pathlib import Path
import txtrain.data.hub
from txtrain.data.documents import read_documents
from txtrain.data.stdlib import StandardLibrary
from txtrain.data.tokenizer import Byte
assert list(read_documents(Path({str(tmp_path / "a.txt")!r}), "text")) == ["x"]
next(StandardLibrary(tokenizer=Byte()).documents())
assert "datasets" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_paths_folders_globs_and_lists(tmp_path):
    for name in ("b.txt", "a.md", "deep/c.jsonl.gz", "code.py", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(paths):
        return [file.relative_to(tmp_path).as_posix() for file in find_files(paths)]

    assert names(str(tmp_path)) == ["a.md", "b.txt", "deep/c.jsonl.gz"]
    assert names(str(tmp_path / "*.txt")) == ["b.txt"]
    assert names(str(tmp_path / "**/c*")) == ["code.py", "deep/c.jsonl.gz"]
    assert names([str(tmp_path / "code.py"), str(tmp_path / "b.txt"), str(tmp_path / "*.txt")]) == ["b.txt", "code.py"]


MISTAKES = {
    "missing": (None, None, r"data\.path=.*missing.* does not exist"),
    "no_match/*.txt": (None, None, r"data\.path=.* does not exist"),
    "empty.txt": (b"", None, r"data\.path=.*empty.txt is empty"),
    "zeros.txt": (b"abc\0def", None, r"zeros.txt is binary.*character 3"),
    "latin.txt": ("naïve".encode("latin-1"), None, r"latin.txt is not UTF-8 text \(byte 2\)"),
    "picture.png": (b"\x89PNG", None, r"unknown extension \.png"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": ', None, r"broken.jsonl line 2 is not JSON"),
    "latin.jsonl": (
        '{"text": "a"}\n{"text": "naïve"}'.encode("latin-1"),
        None,
        r"latin.jsonl line 2 is not JSON.*utf-8",
    ),
    "half.jsonl": (b'{"text": "a\\ud83d"}', None, r"half.jsonl line 1: field text has \\ud83d alone"),
    "list.jsonl": (b"[1]", None, r"list.jsonl line 1 is list"),
    "field.jsonl": (
        b'{"text": "a"}\n\n{"body": "b"}',
        None,
        r"field.jsonl line 3 has no field text.*data\.field.*body",
    ),
    "type.jsonl": (b'{"text": 3}', None, r"type.jsonl line 1: field text is int"),
    "nothing.jsonl": (b"\n\n", None, r"nothing.jsonl holds no text"),
    "broken.parquet": (b"PAR1 not really", None, r"broken.parquet cannot be read \(.*not a parquet file"),
    "cut.parquet": (b"PAR1" + bytes(100) + b"\x20\0\0\0PAR1", None, r"cut.parquet cannot be read"),
    "nothing.parquet": (None, {"text": pyarrow.array([], pyarrow.string())}, r"nothing.parquet holds no text"),
    "null.parquet": (None, {"text": ["a", None]}, r"null.parquet row 2: field text is NoneType"),
    "field.parquet": (None, {"body": ["a"]}, r"field.parquet has no field text.*data\.field.*body"),
    "type.parquet": (None, {"text": [3]}, r"type.parquet row 1: field text is int"),
    "cut.txt.gz": (gzip.compress(b"abc" * 1000)[:-12], None, r"cut.txt.gz cannot be read"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 1000)[:-12], None, r"cut.jsonl.gz cannot be read"),
    "cut.parquet.gz": (gzip.compress(b"PAR1" * 1000)[:-12], None, r"cut.parquet.gz cannot be read"),
    "spoilt.txt.gz": (gzip.compress(b"abc")[:10] + bytes([7] * 20), None, r"spoilt.txt.gz cannot be read"),
    "fake.txt.zst": (b"no zstd", None, r"fake.txt.zst cannot be read"),
    "fake.jsonl.zst": (b"no zstd", None, r"fake.jsonl.zst cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, name, capfd):
    raw, table, message = MISTAKES[name]
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    if table is not None:
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / name)
    data = TextFiles(path=str(tmp_path / name), tokenizer=Byte(), seq_len=1, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=message) as caught:
        data.prepare()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "cache").glob("*[!k]")) if (tmp_path / "cache").exists() else True


def test_a_folder_with_nothing_to_read(tmp_path):
    (tmp_path / "code.py").write_text("x")
    with pytest.raises(UserError, match=r"has no \.txt.*\*\*/\*\.py"):
        find_files(str(tmp_path))


@pytest.fixture
def hub_folder(tmp_path):
    """A data set in a folder, which `load_dataset` takes for one of the Hub."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps({"body": f"document {i}"}) for i in range(30)))
    return folder


@pytest.mark.parametrize("streaming", [False, True])
def test_hub(tmp_path, hub_folder, streaming, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    data = HubText(
        name=str(hub_folder),
        field="body",
        streaming=streaming,
        max_documents=20,
        tokenizer=Byte(),
        seq_len=8,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare()
    assert data.train_tokens + data.validation_tokens == sum(len(f"document {i}") + 1 for i in range(20))
    with pytest.raises(UserError, match=r"data\.field=text is no column.*body"):
        HubText(name=str(hub_folder), tokenizer=Byte(), cache_dir=str(tmp_path / "cache")).prepare()


@pytest.mark.parametrize(("value", "kind"), [("1", "int"), ("0.5", "float"), ("", "NoneType"), ("true", "bool")])
def test_a_field_of_the_hub_that_is_no_text(tmp_path, monkeypatch, value, kind):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.csv").write_text(f"text,label\nsome words,{value}\nother words,{value}\n")
    data = HubText(name=str(folder), field="label", tokenizer=Byte(), cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"rows row 1: field label is .*not text: set data\.field to one") as caught:
        data.prepare()
    assert kind in str(caught.value)


def test_hub_without_a_network(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"data\.name=some/thing needs http://127.* cannot be reached.*data=text"
    ) as caught:
        HubText(name="some/thing", tokenizer=Byte(), cache_dir=str(tmp_path)).prepare()
    assert "\n" not in str(caught.value)


def test_a_hub_that_never_answers(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:  # takes the connection and says nothing
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.perf_counter()
        with pytest.raises(UserError, match="cannot be reached"):
            HubText(name="some/thing", tokenizer=Byte(), cache_dir=str(tmp_path)).prepare()
        assert time.perf_counter() - start < 5


def test_streaming_needs_an_end():
    with pytest.raises(UserError, match=r"data\.max_documents=10000"):
        HubText(name="some/thing", streaming=True, tokenizer=Byte())
