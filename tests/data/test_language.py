"""From text to batches: the split, the counts, the cache, and several processes that want the same entry."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from txtrain.data import language
from txtrain.data.stdlib import StandardLibrary
from txtrain.data.text import TextFiles
from txtrain.data.token_stream import read_counts
from txtrain.data.tokenizer import BPE, Byte, Char, Pretrained
from txtrain.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Sixty documents of different lengths in a folder of their own."""
    place = tmp_path / "texts"
    place.mkdir()
    for number in range(60):
        (place / f"{number:02}.txt").write_text(f"document {number} " * (1 + number % 5) + "é\n", encoding="utf-8")
    return place


def data(path, tmp_path, **options):
    options = {"tokenizer": Byte(), "seq_len": 16, "cache_dir": str(tmp_path / "cache")} | options
    made = TextFiles(path=str(path), **options)
    made.prepare()
    return made


def texts_of(made, split):
    """The documents, read back from the tokens."""
    tokens = np.fromfile(made.folder / f"{split}.bin", dtype=made.dtype)
    end = made.tokenizer.end_of_text
    assert tokens[0] == tokens[-1] == end
    parts = np.split(tokens[1:-1], np.flatnonzero(tokens[1:-1] == end))
    return [made.tokenizer.decode(part.tolist()) for part in parts]


@pytest.mark.parametrize("tokenizer", [Byte, Char, lambda: BPE(vocab_size=265)])
def test_every_document_is_on_one_side_unchanged(folder, tmp_path, tokenizer):
    made = data(folder, tmp_path, tokenizer=tokenizer())
    train, validation = texts_of(made, "train"), texts_of(made, "validation")
    assert sorted(train + validation) == sorted(file.read_text(encoding="utf-8") for file in folder.iterdir())
    assert 1 <= len(validation) <= 15
    assert made.validation_bytes == sum(len(text.encode()) for text in validation)
    for split, tokens in (("train", made.train_tokens), ("validation", made.validation_tokens)):
        windows = made.samples(split)
        targets = windows.batch(np.arange(len(windows)))["targets"]
        assert int((targets != -100).sum()) == tokens


def test_the_split_survives_new_documents_and_new_names(folder, tmp_path):
    before = set(texts_of(data(folder, tmp_path), "validation"))
    (folder / "00.txt").rename(folder / "zz.txt")
    (folder / "new.txt").write_text("a new one")
    after = set(texts_of(data(folder, tmp_path), "validation"))
    assert before == after - {"a new one"}


def test_one_document_is_cut_as_nanogpt_cuts_it(tmp_path):
    text = "".join(chr(97 + i * i % 26) for i in range(1003))
    (tmp_path / "one.txt").write_text(text)
    made = data(tmp_path / "one.txt", tmp_path, tokenizer=Char())
    assert texts_of(made, "train") == [text[: int(1003 * 0.9)]]
    assert texts_of(made, "validation") == [text[int(1003 * 0.9) :]]


def test_two_documents_give_one_to_each_side(tmp_path):
    (tmp_path / "a.txt").write_text("first document, long enough")
    (tmp_path / "b.txt").write_text("second document, long enough")
    made = data(tmp_path / "*.txt", tmp_path)
    assert len(texts_of(made, "train")) == len(texts_of(made, "validation")) == 1


def test_equal_documents_are_still_two(tmp_path):
    (tmp_path / "same.jsonl").write_text('{"text": "always the same"}\n' * 3)
    made = data(tmp_path / "same.jsonl", tmp_path)
    assert (len(texts_of(made, "train")), len(texts_of(made, "validation"))) in [(1, 2), (2, 1)]


def test_no_text_to_validate_on(folder, tmp_path):
    (tmp_path / "held.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"no text for validation.*data\.validation_fraction"):
        data(folder, tmp_path, validation_path=str(tmp_path / "held.jsonl"))


def test_validation_files_of_their_own(folder, tmp_path):
    (tmp_path / "held.txt").write_text("held out")
    made = data(folder, tmp_path, validation_path=str(tmp_path / "held.txt"))
    assert texts_of(made, "validation") == ["held out"]
    assert len(texts_of(made, "train")) == 60


def test_the_cache_is_used_until_something_changes(folder, tmp_path, monkeypatch):
    first = data(folder, tmp_path, tokenizer=BPE(vocab_size=265))
    with monkeypatch.context() as patch:
        patch.setattr(language, "write", lambda *_: pytest.fail("tokenized again"))
        second = data(folder, tmp_path, tokenizer=BPE(vocab_size=265), seq_len=8, batch_size=3, packing="documents")
    assert first.folder == second.folder
    assert second.tokenizer.encode("document 7") == first.tokenizer.encode("document 7")
    assert second.train_tokens == first.train_tokens
    os.utime(folder / "00.txt", ns=(1, 1))
    assert data(folder, tmp_path, tokenizer=BPE(vocab_size=265)).folder != first.folder
    folders = {
        data(folder, tmp_path, tokenizer=tokenizer, validation_fraction=fraction).folder
        for tokenizer, fraction in [(Byte(), 0.1), (Byte(), 0.2), (Char(), 0.1), (BPE(vocab_size=264), 0.1)]
    }
    assert len(folders) == 4


def test_nothing_is_written_beside_the_data(folder, tmp_path):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    data(folder, tmp_path)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_large_vocabulary_takes_four_bytes(folder, tmp_path):
    tokenizer = Char()
    tokenizer.fit(["".join(map(chr, range(40, 50_000)))])
    tokenizer.core.add_tokens([f"<extra {number}>" for number in range(20_000)])
    tokenizer.save(tmp_path / "tokenizer.json")
    large = data(folder, tmp_path, tokenizer=Pretrained(path=str(tmp_path / "tokenizer.json")))
    assert large.dtype == "uint32"
    assert data(folder, tmp_path).dtype == "uint16"


RACER = """
import sys, time
from pathlib import Path
from txtrain.data import cache
from txtrain.data.token_stream import read_counts, write
from txtrain.data.tokenizer import BPE

texts = [file.read_text(encoding="utf-8") for file in sorted(Path(sys.argv[1]).iterdir())]

def build(folder):
    print("writes", flush=True)
    tokenizer = BPE(vocab_size=265)
    tokenizer.fit(texts)
    write(folder, tokenizer, [(text, number == 0) for number, text in enumerate(texts)])
    time.sleep(1)

folder = cache.entry(Path(sys.argv[2]), "entry", build)
print(folder, read_counts(folder).train_tokens, flush=True)
"""


def race(folder, cache_dir):
    return subprocess.Popen(
        [sys.executable, "-c", RACER, str(folder), str(cache_dir)], stdout=subprocess.PIPE, text=True, bufsize=1
    )


def test_of_two_processes_one_writes_and_a_killed_one_leaves_nothing_broken(folder, tmp_path):
    cache_dir = tmp_path / "cache"
    victim = race(folder, cache_dir)
    assert victim.stdout.readline() == "writes\n"
    racers = [race(folder, cache_dir), race(folder, cache_dir)]  # they wait for the victim's lock
    victim.kill()
    victim.communicate()
    outputs = [racer.communicate()[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert "".join(outputs).count("writes") == 1
    assert outputs[0].split()[-2:] == outputs[1].split()[-2:]
    assert not list(cache_dir.glob("*.partial*"))
    counts = read_counts(cache_dir / "entry")
    assert (cache_dir / "entry" / "train.bin").stat().st_size == 2 * (counts.train_tokens + 1)


def test_a_writer_that_fails_leaves_nothing(folder, tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match="vocab_size"):
            data(folder, tmp_path, tokenizer=BPE(vocab_size=5000))
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.isdir("/proc"), reason="root may write anywhere")
def test_an_unwritable_cache(folder, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "cache", "/proc/nothing"):
        with pytest.raises(UserError, match=r"data\.cache_dir=.* TXTRAIN_CACHE") as caught:
            data(folder, tmp_path, cache_dir=str(place))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "option, value",
    [
        ("batch_size", 0),
        ("seq_len", 0),
        ("micro_batch_size", 0),
        ("num_workers", -1),
        ("validation_fraction", 1.0),
        ("packing", "none"),
    ],
)
def test_impossible_options(folder, tmp_path, option, value):
    with pytest.raises(UserError, match=rf"data\.{option}=.*: set data\.{option}="):
        data(folder, tmp_path, **{option: value})


def test_too_little_text_for_a_window(tmp_path):
    (tmp_path / "short.txt").write_text("0123456789")
    with pytest.raises(UserError, match=r"set data\.seq_len=10 or less"):
        data(tmp_path / "short.txt", tmp_path, seq_len=11)
    assert data(tmp_path / "short.txt", tmp_path, seq_len=10).train_tokens == 10


@pytest.mark.parametrize(
    "batch_size, most, devices, micro, accumulation",
    [(16, None, 1, 16, 1), (16, 4, 1, 4, 4), (16, 4, 2, 4, 2), (16, 32, 1, 16, 1), (5, None, 2, 3, 1), (1, 1, 3, 1, 1)],
)
def test_accumulation_is_derived(tmp_path, batch_size, most, devices, micro, accumulation):
    made = TextFiles(path="x", tokenizer=Byte(), batch_size=batch_size, micro_batch_size=most)
    assert (made.micro(devices), made.accumulation(devices)) == (micro, accumulation)
    assert micro * devices * accumulation >= batch_size


def test_the_standard_library_is_real_and_split_by_file(tmp_path):
    start = time.perf_counter()
    made = StandardLibrary(tokenizer=Byte(), cache_dir=str(tmp_path))
    names = [name for name, _ in made.documents()]
    assert names == sorted(names)
    assert {"json/decoder.py", "asyncio/tasks.py", "argparse.py"} <= set(names)
    assert not any(
        part in ("test", "tests", "site-packages", "idle_test") for name in names for part in name.split("/")
    )
    assert time.perf_counter() - start < 5
    made.documents = lambda: ((name, text) for name, text in type(made).documents(made) if name.startswith("json/"))
    made.prepare()
    texts = texts_of(made, "train") + texts_of(made, "validation")
    assert sorted(texts) == sorted(text for _, text in made.documents())
