"""Tokenizers: nothing lost, files that other libraries read, and the errors."""

import logging
import random
import subprocess
import sys

import pytest
import tokenizers

from txtrain.data import cutting
from txtrain.data.tokenizer import BPE, END_OF_TEXT, UNKNOWN, Byte, Char, Pretrained
from txtrain.errors import UserError

TEXT = "def f(x):\n\treturn x ** 2  # naïve – 日本語 🙂\r\n\n\n" * 40 + "".join(chr(c) for c in range(1, 300))
AWKWARD = [
    "", " ", "  two  spaces  ", "\n\n \n", f"a{END_OF_TEXT}b", "[UNK]", "𝔘nicode ´ \u200d \u0301", "\r\n\ttab", UNKNOWN
]  # fmt: skip


def fitted(kind):
    tokenizer = BPE(vocab_size=280) if kind is BPE else kind()
    tokenizer.fit([TEXT])
    return tokenizer


@pytest.mark.parametrize("kind", [BPE, Byte, Char])
def test_lossless(kind):
    tokenizer = fitted(kind)
    texts = [TEXT, *(text for text in AWKWARD if kind is not Char or set(text) <= set(TEXT) | {UNKNOWN})]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


@pytest.mark.parametrize("kind", [BPE, Byte, Char])
def test_no_text_ends_a_document(kind):
    tokenizer = fitted(kind)
    assert all(tokenizer.end_of_text not in ids for ids in tokenizer.encode_batch([TEXT, *AWKWARD]))
    assert tokenizer.decode([*tokenizer.encode("ab"), tokenizer.end_of_text]) == "ab"


@pytest.mark.parametrize("kind", [BPE, Byte, Char])
def test_the_file_means_the_same_to_the_library(kind, tmp_path):
    tokenizer = fitted(kind)
    tokenizer.save(tmp_path / "tokenizer.json")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    library.encode_special_tokens = True
    assert library.get_vocab_size() == tokenizer.vocab_size
    assert library.token_to_id(END_OF_TEXT) == tokenizer.end_of_text
    for text in [TEXT, *AWKWARD]:
        ids = tokenizer.encode(text)
        assert library.encode(text).ids == ids
        assert library.decode(ids) == tokenizer.decode(ids)
    again = type(tokenizer)()
    again.load(tmp_path / "tokenizer.json")
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert (again.vocab_size, again.end_of_text) == (tokenizer.vocab_size, tokenizer.end_of_text)


def test_bytes_are_bytes():
    tokenizer = fitted(Byte)
    assert tokenizer.encode("aé") == list("aé".encode())
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)
    assert tokenizer.decode([255, 97]) == "�a"


def test_an_unseen_character_becomes_the_replacement_character():
    tokenizer = Char()
    tokenizer.fit(["abc"])
    assert tokenizer.vocab_size == 5
    assert tokenizer.decode(tokenizer.encode("aXc")) == "a�c"


def test_bpe_is_the_same_in_another_process(tmp_path):
    code = (
        "from txtrain.data.tokenizer import BPE; import sys; t = BPE(vocab_size=280); "
        "t.fit([sys.argv[1]]); t.save(sys.argv[2])"
    )
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for file in files:
        subprocess.run([sys.executable, "-c", code, TEXT.replace("\0", ""), str(file)], check=True)
    assert files[0].read_text() == files[1].read_text()


def test_bpe_names_the_largest_vocabulary():
    with pytest.raises(UserError, match=r"set tokenizer.vocab_size=(\d+)") as caught:
        BPE(vocab_size=5000).fit([TEXT])
    largest = int(str(caught.value).split("set tokenizer.vocab_size=")[1].split()[0])
    tokenizer = BPE(vocab_size=largest)
    tokenizer.fit([TEXT])
    assert tokenizer.vocab_size == largest
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=257"):
        BPE(vocab_size=100).fit([TEXT])


def test_cutting_a_long_text_leaves_its_tokens(monkeypatch):
    draw = random.Random(0)
    words = ["foo", "bar;", "\n", "\n\n", " ", "\t", "\r\n", "don't", "1234", "'s", "日本", "\n    ", "#", "\n"]
    text = "".join(draw.choice(words) for _ in range(20_000))
    tokenizer = BPE(vocab_size=280)
    tokenizer.fit([text])
    monkeypatch.setattr(cutting, "PIECE", 50)
    pieces = [piece.text for piece in cutting.pieces(text, tokenizer)]
    assert len(pieces) > 100
    assert "".join(pieces) == text
    assert [token for ids in tokenizer.encode_batch(pieces) for token in ids] == tokenizer.encode(text)


@pytest.mark.parametrize("named", ["file", "folder"])
def test_pretrained(named, tmp_path):
    bpe = fitted(BPE)
    bpe.save(tmp_path / "tokenizer.json")
    tokenizer = Pretrained(path=str(tmp_path if named == "folder" else tmp_path / "tokenizer.json"))
    tokenizer.fit()
    assert tokenizer.encode(TEXT) == bpe.encode(TEXT)
    assert tokenizer.end_of_text == bpe.end_of_text


def test_pretrained_takes_the_end_of_text_that_the_folder_names(tmp_path):
    bpe = fitted(BPE)
    bpe.core.add_special_tokens(["<stop>"])
    bpe.save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<stop>"}}')
    tokenizer = Pretrained(path=str(tmp_path))
    tokenizer.fit()
    assert tokenizer.end_of_text == bpe.core.token_to_id("<stop>")


def test_pretrained_errors(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.path"):
        Pretrained(path=str(tmp_path / "missing.json")).fingerprint()
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.path"):
        Pretrained(path=str(tmp_path)).fit()
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0})).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.end_of_text=TOKEN"):
        Pretrained(path=str(tmp_path)).fit()


def test_a_disk_that_is_full_is_an_os_error() -> None:
    """Which callers tell as such; the library's own is a bare Exception."""
    tokenizer = Byte()
    tokenizer.fit()
    with pytest.raises(OSError, match="No space left"):
        tokenizer.save("/dev/full")


def test_the_vocabulary_fits_a_small_text_unless_its_size_is_typed(caplog, tmp_path):
    caplog.set_level(logging.INFO, logger="txtrain")
    small = BPE()
    small.fit(["one two one two"])
    assert 257 < small.vocab_size < 300
    assert f"tokenizer.vocab_size is {small.vocab_size}" in caplog.text
    with pytest.raises(UserError, match=f"set tokenizer.vocab_size={small.vocab_size} or less"):
        BPE(vocab_size=4096).fit(["one two one two"])
    small.save(tmp_path / "tokenizer.json")
    with pytest.raises(UserError, match=f"set tokenizer.vocab_size={small.vocab_size} or less"):
        BPE(vocab_size=4096).load(tmp_path / "tokenizer.json")  # that of the cache, where it was not typed
    BPE().load(tmp_path / "tokenizer.json")
    assert BPE().fingerprint() == BPE(vocab_size=4096).fingerprint()
