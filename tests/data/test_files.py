"""Formats: what is read from each, and one line for each mistake."""

import gzip
import json
import socket
import time

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from txtrain.data import hub
from txtrain.data.files import find_files, read_documents
from txtrain.data.hub import HubText
from txtrain.data.text import TextFiles
from txtrain.data.tokenizer import Byte
from txtrain.errors import UserError

ROWS = ["first\r\n document", "второй", "", "third 🙂"]


def content(kind: str, field: str, folder) -> bytes:
    if kind == ".jsonl":
        return "\n".join(json.dumps({field: row, "other": 1}) for row in ROWS).encode() + b"\n\n"
    if kind == ".parquet":
        path = folder / "made"
        pyarrow.parquet.write_table(pyarrow.table({"other": range(4), field: ROWS}), path)
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
    "list.jsonl": (b"[1]", None, r"list.jsonl line 1 is list"),
    "field.jsonl": (
        b'{"text": "a"}\n\n{"body": "b"}',
        None,
        r"field.jsonl line 3 has no field text.*data\.field.*body",
    ),
    "type.jsonl": (b'{"text": 3}', None, r"type.jsonl line 1: field text is int"),
    "nothing.jsonl": (b"\n\n", None, r"nothing.jsonl holds no text"),
    "broken.parquet": (b"PAR1 not really", None, r"broken.parquet is not Parquet"),
    "field.parquet": (None, {"body": ["a"]}, r"field.parquet has no field text.*data\.field.*body"),
    "type.parquet": (None, {"text": [3]}, r"type.parquet row 1: field text is int"),
    "cut.txt.gz": (gzip.compress(b"abc" * 1000)[:-12], None, r"cut.txt.gz cannot be read"),
    "fake.txt.zst": (b"no zstd", None, r"fake.txt.zst cannot be read"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(tmp_path, name):
    raw, table, message = MISTAKES[name]
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    if table is not None:
        pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / name)
    data = TextFiles(path=str(tmp_path / name), tokenizer=Byte(), seq_len=1, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(UserError, match=message) as caught:
        data.prepare()
    assert "\n" not in str(caught.value)
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
