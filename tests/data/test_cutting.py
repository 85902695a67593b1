"""A long text has the tokens of the whole, in whatever pieces it is encoded."""

import random

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from tests.data.pieces import train
from txtrain.data import cutting
from txtrain.data.long_text import LongText
from txtrain.data.tokenizer import BPE, END_OF_TEXT, Byte, Char, Pretrained
from txtrain.errors import UserError

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = [
    *[
        "the",
        "a",
        "of",
        "fox's",
        "don't",
        "I'LL",
        "naïve",
        "дом",
        "東京",
        "日本語。",
        "½",
        "12",
        "3456",
        "7",
        "x=1;",
        "__",
        "...",
        "--",
        "\u0301",
        "👩\u200d💻",
        "<tool>",
        "</s>",
        "[SEP]",
        "ABc",
    ],
    *(END_OF_TEXT, "\u3000", "\xa0", "e\u0301", "ﬁ", "№"),
]
SPACES = [*[" "] * 12, "  ", "   ", "\n", "\n\n", "\n \n", "\r\n", "\t", "\n    ", "", " \n", "\u2028"]


def text(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice(SPACES) for _ in range(words))


def made(kind: str, folder) -> tokenizers.Tokenizer:
    """Tokenizers as files on the Hub have them."""
    if kind == "wordpiece":
        core = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[SEP]"], show_progress=False)
    elif kind in ("unigram", "unigram_first"):
        core = tokenizers.Tokenizer(models.Unigram())
        core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if kind == "unigram_first" else "always")
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
        )
    elif kind == "llama":
        core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "</s>"], show_progress=False)
        core.pre_tokenizer = pre_tokenizers.Split(Regex("(?<=[^▁])(?=▁)"), "isolated")  # as its words are trained
    else:
        core = tokenizers.Tokenizer(models.BPE())
        levels = pre_tokenizers.ByteLevel(add_prefix_space=kind == "prefix_space", use_regex=kind != "cl100k")
        steps = {
            "cl100k": [pre_tokenizers.Split(Regex(CL100K), "isolated"), levels],
            "digits": [pre_tokenizers.Digits(individual_digits=True), levels],
            "punctuation": [pre_tokenizers.Punctuation(), pre_tokenizers.Whitespace(), levels],
        }.get(kind, [levels])
        core.pre_tokenizer = pre_tokenizers.Sequence(steps)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[END_OF_TEXT], show_progress=False)
    core.train_from_iterator([text(seed, 3000) for seed in range(3)], trainer)
    if kind == "llama":
        core.pre_tokenizer = None
    if kind == "added":
        core.add_tokens([AddedToken("<tool>", lstrip=True, rstrip=True), AddedToken("fox's", single_word=True)])
    return core


HUB = [
    "gpt2",
    "prefix_space",
    "cl100k",
    "digits",
    "punctuation",
    "added",
    "wordpiece",
    "unigram",
    "unigram_first",
    "llama",
]


def tokenizer_of(kind: str, folder):
    if kind in ("byte", "char", "bpe"):
        tokenizer = {"byte": Byte, "char": Char, "bpe": lambda: BPE(vocab_size=400)}[kind]()
        tokenizer.fit([text(1, 3000)])
        return tokenizer
    if kind == "sentencepiece":
        train(folder / "spiece.model", text(1, 3000).splitlines(), vocab_size=200, model_type="unigram")
        tokenizer = Pretrained(path=str(folder))
    else:
        made(kind, folder).save(str(folder / "tokenizer.json"))
        tokenizer = Pretrained(path=str(folder))
    tokenizer.fit()
    return tokenizer


@pytest.mark.parametrize("kind", ["byte", "char", "bpe", "sentencepiece", *HUB])
def test_pieces_have_the_tokens_of_the_whole(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(cutting, "PIECE", 300)
    tokenizer = tokenizer_of(kind, tmp_path)
    for seed in range(10, 18):
        whole = text(seed, 1500)
        if seed % 2:
            whole = " ".join(whole.split())  # one line
        found = list(cutting.pieces(LongText(lambda whole=whole: iter([whole[:999], whole[999:]])), tokenizer))
        assert len(found) > 5
        assert [piece.last for piece in found] == [False] * (len(found) - 1) + [True]
        assert sum(piece.size for piece in found) == len(whole.encode())
        ids = [token for ids in tokenizer.id_arrays([piece.text for piece in found]) for token in ids.tolist()]
        assert ids == tokenizer.encode(whole), seed


def test_what_cannot_be_cut_is_one_line(monkeypatch):
    monkeypatch.setattr(cutting, "PIECE", 300)
    monkeypatch.setattr(cutting, "UNCUT", 2000)
    tokenizer = BPE()
    tokenizer.fit(["aaaa bbbb " * 50])
    with pytest.raises(UserError, match=r"a text has 5,000 characters \('aaaa.*cannot cut anywhere.*at most 2,000"):
        list(cutting.pieces("a" * 5000, tokenizer))
    assert len(list(cutting.pieces("a" * 1999, tokenizer))) == 1
