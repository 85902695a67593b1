"""The cache notices damage: of every kind of entry, and of every file in one."""

import json
import logging
import os
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from PIL import Image

from txtrain.audio.augment import Augment
from txtrain.audio.mel import WhisperMel
from txtrain.data import seal
from txtrain.data.audio_folder import AudioFolder
from txtrain.data.chat import FORMS, ChatData
from txtrain.data.image_folder import ImageFolder
from txtrain.data.labelled_files import LabelledFiles
from txtrain.data.pair_files import PairFiles
from txtrain.data.tagged_files import TaggedFiles
from txtrain.data.text import TextFiles
from txtrain.data.tokenizer import BPE, Byte, Char
from txtrain.errors import UserError


def lines(path: Path, rows: list) -> Path:
    return once(path, "".join(json.dumps(row) + "\n" for row in rows))


def once(path: Path, text: str) -> Path:
    """A file that is written the first time: another time of change would be other data."""
    if not path.exists():
        path.write_text(text)
    return path


def text(folder: Path) -> TextFiles:
    path = lines(folder / "text.jsonl", [{"text": f"document {n} " * 9} for n in range(40)])
    return TextFiles(path=str(path), tokenizer=BPE(vocab_size=265), seq_len=8, cache_dir=str(folder / "cache"))


def chat(folder: Path) -> ChatData:
    rows = [[{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}!"}] for n in range(20)]
    path = lines(folder / "chat.jsonl", [{"messages": row} for row in rows])
    return ChatData(path=str(path), tokenizer=Byte(), seq_len=64, cache_dir=str(folder / "cache"))


def labelled(folder: Path) -> LabelledFiles:
    path = lines(folder / "labelled.jsonl", [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(20)])
    return LabelledFiles(path=str(path), tokenizer=Char(), seq_len=16, cache_dir=str(folder / "cache"))


def tagged(folder: Path) -> TaggedFiles:
    path = once(folder / "tagged.conll", "".join(f"word{n} A\nother B\n\n" for n in range(20)))
    return TaggedFiles(path=str(path), tokenizer=Byte(), seq_len=32, cache_dir=str(folder / "cache"))


def pairs(folder: Path, **options) -> PairFiles:
    path = once(folder / "pairs.tsv", "".join(f"one {n}\teins {n}\n" for n in range(20)))
    return PairFiles(path=str(path), tokenizer=Byte(), seq_len=32, cache_dir=str(folder / "cache"), **options)


def memory(folder: Path) -> PairFiles:
    return pairs(folder, memory=True)


def sound(folder: Path) -> AudioFolder:
    for number in range(8):
        file = folder / "sound" / "ab"[number % 2] / f"{number}.wav"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with wave.open(str(file), "wb") as wav:
                wav.setparams((1, 2, 16000, 0, "NONE", ""))
                wav.writeframes((np.arange(4000) % (50 + number)).astype(np.int16).tobytes())
    return AudioFolder(
        path=str(folder / "sound"),
        features=WhisperMel(num_mels=20),
        augment=Augment(),
        tokenizer=Char(),
        cache_dir=str(folder / "cache"),
    )


def images(folder: Path) -> ImageFolder:
    for number in range(8):
        file = folder / "images" / "ab"[number % 2] / f"{number}.png"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number, 0, 0)).save(file)
    once(folder / "images" / "a" / "bad.png", "no image")
    return ImageFolder(path=str(folder / "images"), image_size=4, tokenizer=None, cache_dir=str(folder / "cache"))


KINDS = [text, chat, labelled, tagged, pairs, memory, sound, images]
BINARY = ("cut", "flip", "zero", "empty", "gone", "folder", "loop", "pipe")


def entry_of(made) -> Path:
    return next(path for path in (made.cache_dir).iterdir() if path.is_dir())


def content(folder: Path) -> dict[str, bytes]:
    """All that an entry holds, without its seal."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in (seal.SEAL, seal.CHECKED)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def batches(made) -> list:
    found = []
    for split in ("train", "validation"):
        samples = made.samples(split)
        found += [samples.batch(np.array([number]), 0) for number in range(len(samples))]
    return [{name: array.tolist() for name, array in batch.items()} for batch in found]


def damage(path: Path, how: str) -> None:
    held = path.read_bytes()
    if how == "cut":
        path.write_bytes(held[: len(held) // 2])
    elif how == "flip":
        path.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    elif how == "zero":
        path.write_bytes(bytes(len(held)))
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "loop":
            path.symlink_to(path.name)
        elif how == "pipe":
            os.mkfifo(path)


@pytest.fixture
def told(caplog) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="txtrain")
    return caplog


@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_any_file_of_any_kind_is_noticed_and_made_good(kind, tmp_path, told):
    made = kind(tmp_path)
    made.prepare()
    folder, whole, seen = entry_of(made), content(entry_of(made)), batches(made)
    for number, name in enumerate(sorted(whole)):
        if not whole[name]:
            continue
        for how in BINARY if kind is text else [BINARY[number % 8], BINARY[(number + 3) % 8]]:
            damage(folder / name, how)
            told.clear()
            again = kind(tmp_path)
            again.prepare()
            assert [record.levelname for record in told.records] == ["WARNING"], (name, how)
            assert name in told.text and "made again" in told.text
            assert content(folder) == whole
            assert batches(again) == seen
    assert sorted(path.suffix for path in made.cache_dir.iterdir() if path.name.startswith(folder.name)) == [
        "",
        ".lock",
    ]


JSON = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b"7",
    b'"text"',
    b"{",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"dtype": "uint16", "train_tokens": 1000000000000, "train_bytes": 1, "validation_tokens": 1, '
    b'"validation_bytes": 1}',
    b'{"dtype": "float64", "empty": "none"}',
    b'{"version": 1, "files": {"train.bin": null}}',
    b'{"version": 1, "files": {"../../x": {"size": 1, "whole": "", "samples": ""}}}',
    b'{"boots": {"a": {"b": [1, 2, 3]}}}',
)


@pytest.mark.parametrize("kind", KINDS)
def test_seals_of_any_form_are_made_again(kind, tmp_path):
    made = kind(tmp_path)
    made.prepare()
    folder, whole = entry_of(made), content(entry_of(made))
    for name in (seal.SEAL, seal.CHECKED):
        for held in JSON if kind is text else JSON[::5]:
            (folder / name).write_bytes(held)
            kind(tmp_path).prepare()
            assert content(folder) == whole, (name, held)
        for how in ("gone", "loop", "pipe", "folder"):
            (folder / name).write_bytes(b"")
            damage(folder / name, how)
            kind(tmp_path).prepare()
            assert content(folder) == whole, (name, how)


@pytest.mark.parametrize("kind", KINDS)
def test_records_of_any_form_in_an_entry_from_before_end_in_no_traceback(kind, tmp_path):
    made = kind(tmp_path)
    made.prepare()
    folder, whole = entry_of(made), content(entry_of(made))
    for number, name in enumerate(sorted(whole)):
        for held in JSON if kind is text and name.endswith(".json") else JSON[number % 4 :: 4]:
            (folder / name).write_bytes(held)
            (folder / seal.SEAL).unlink(missing_ok=True)  # as entries were before there were seals
            again = kind(tmp_path)
            again.prepare()
            batches(again)
            for path in folder.iterdir():
                path.unlink()
            for restored, bytes_of_it in whole.items():
                (folder / restored).write_bytes(bytes_of_it)
        for how in ("gone", "cut", "loop", "pipe", "folder"):
            damage(folder / name, how)
            (folder / seal.SEAL).unlink(missing_ok=True)
            kind(tmp_path).prepare()
            if name == FORMS and how == "gone":  # an entry from before has none
                (folder / name).write_bytes(whole[name])
            assert content(folder).keys() == whole.keys(), (name, how)
            if how != "cut":
                assert content(folder) == whole, (name, how)
            (folder / name).write_bytes(whole[name])


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_from_before_is_sealed_at_its_first_use(kind, tmp_path, told):
    made = kind(tmp_path)
    made.prepare()
    folder = entry_of(made)
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}
    (folder / seal.SEAL).unlink()
    (folder / seal.CHECKED).unlink()
    kind(tmp_path).prepare()
    assert not told.records
    after = {path.name: path.stat().st_ino for path in folder.iterdir()}
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} <= {seal.SEAL, seal.CHECKED}


def test_ids_beyond_the_vocabulary_are_damage(tmp_path, told):
    made = text(tmp_path)
    made.prepare()
    folder = entry_of(made)
    (folder / seal.SEAL).unlink()  # an entry from before
    ids = np.fromfile(folder / "train.bin", dtype=np.uint16)
    ids[3] = made.tokenizer.vocab_size
    ids.tofile(folder / "train.bin")
    text(tmp_path).prepare()
    assert "train.bin has the token 265, and there are 265" in told.text
    assert np.fromfile(folder / "train.bin", dtype=np.uint16).max() < 265


def test_all_is_read_after_a_change_of_times_or_a_boot_and_only_then(tmp_path, monkeypatch):
    read = []
    whole = seal.check_whole
    monkeypatch.setattr(seal, "check_whole", lambda *given: (read.append(1), whole(*given)))
    made = text(tmp_path)
    made.prepare()
    text(tmp_path).prepare()
    assert not read
    folder = entry_of(made)
    shutil.copytree(folder, tmp_path / "copy")  # with its times, as an archive keeps them
    os.utime(folder / "train.bin", ns=(1, 1))
    text(tmp_path).prepare()
    text(tmp_path).prepare()
    assert read == [1]
    monkeypatch.setattr(seal, "boot", lambda: "another")
    text(tmp_path).prepare()
    text(tmp_path).prepare()
    assert read == [1, 1]


def test_what_lies_between_the_samples_is_noticed_after_a_boot(tmp_path, monkeypatch, told):
    path = lines(tmp_path / "long.jsonl", [{"text": f"{n} " * 20_000} for n in range(20)])

    def long() -> TextFiles:
        made = TextFiles(path=str(path), tokenizer=Byte(), cache_dir=str(tmp_path / "cache"))
        made.prepare()
        return made

    folder = entry_of(long())
    file, state = folder / "train.bin", (folder / "train.bin").stat()
    whole = file.read_bytes()
    with file.open("r+b") as stream:
        stream.seek(seal.SAMPLE + 10)
        stream.write(b"\x01")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # as a disk that goes bad leaves them
    monkeypatch.setattr(seal, "boot", lambda: "another")
    long()
    assert "train.bin has been changed" in told.text
    assert file.read_bytes() == whole


@pytest.mark.parametrize("what", ["file", "loop", "pipe"])
def test_something_else_with_the_name_of_an_entry(what, tmp_path):
    made = text(tmp_path)
    made.prepare()
    folder, whole = entry_of(made), content(entry_of(made))
    shutil.rmtree(folder)
    folder.write_text("")
    if what != "file":
        damage(folder, what)
    text(tmp_path).prepare()
    assert content(folder) == whole


def as_nobody(act) -> str:
    """What a process of another user says, which has no rights beyond those of its user."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            act()
            answer = "right"
        except UserError as error:
            answer = str(error)
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    return answer


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that everybody may enter, other than those of pytest."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("sealed", [True, False])
def test_a_cache_that_may_only_be_read(sealed, open_folder):
    tmp_path = open_folder
    made = text(tmp_path)
    made.prepare()
    folder = entry_of(made)
    if not sealed:
        (folder / seal.SEAL).unlink()
        (folder / seal.CHECKED).unlink()
    before = {path: path.stat().st_mtime_ns for path in [made.cache_dir, *made.cache_dir.rglob("*")]}
    assert as_nobody(lambda: text(tmp_path).prepare()) == "right"
    os.utime(folder / "train.bin")
    before[folder / "train.bin"] = (folder / "train.bin").stat().st_mtime_ns
    assert as_nobody(lambda: text(tmp_path).prepare()) == "right"
    assert {path: path.stat().st_mtime_ns for path in [made.cache_dir, *made.cache_dir.rglob("*")]} == before
    (folder / "train.bin").chmod(0)
    answer = as_nobody(lambda: text(tmp_path).prepare())
    assert "train.bin cannot be read (Permission denied)" in answer and "data.cache_dir=" in answer
    (folder / "train.bin").chmod(0o644)
    damage(folder / "train.bin", "cut")
    answer = as_nobody(lambda: text(tmp_path).prepare())
    assert "is damaged (train.bin has" in answer and "data.cache_dir=" in answer and "\n" not in answer
