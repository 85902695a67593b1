"""Text that is told while tokens come: all of it in the end, no half characters, and nothing after a stop string."""

import random

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from txtrain.data.tokenizer import BPE, Byte, Char
from txtrain.generate.continuation import Continuation
from txtrain.generate.detokenize import Detokenizer
from txtrain.generate.stop import StopStrings

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
TEXT = "The café's naïve résumé — 数据 🙂🙃 flows, \t«tab»\n" * 3


def sentencepiece():
    """Words begin with a mark for the space before them, and bytes stand for what is in no piece (Llama 2)."""
    pieces = [SPACE, f"{SPACE}The", f"{SPACE}caf", "é", "s", "'", f"{SPACE}flows", ",", "n", "a"]
    vocabulary = {
        piece: number for number, piece in enumerate(["<unk>", *pieces, *(f"<0x{b:02X}>" for b in range(256))])
    }
    core = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="first", split=False)
    strip = decoders.Strip(content=" ", left=1, right=0)
    core.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    return core.decode, len(vocabulary)


def ours(tokenizer):
    tokenizer.fit([TEXT])
    return tokenizer.decode, tokenizer.vocab_size - 1


MAKERS = {
    "bpe": lambda: ours(BPE(vocab_size=300)),
    "byte": lambda: ours(Byte()),
    "char": lambda: ours(Char()),
    "sentencepiece": sentencepiece,
}


@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_told_is_the_text_of_all_tokens(maker):
    """Any tokens at all, which are often no characters, after any others."""
    decode, size = MAKERS[maker]()
    draw = random.Random(0)
    # One byte that is no character makes SentencePiece take those next to it for none either, told already or not.
    drawn = range(11) if maker == "sentencepiece" else range(size)
    for length in range(40):
        before = draw.choices(drawn, k=length % 4)
        tokens = draw.choices(drawn, k=length)
        if decode(before).endswith("\N{REPLACEMENT CHARACTER}"):
            before = []
        detokenizer = Detokenizer(decode, before)
        told = "".join([detokenizer.add(token) for token in tokens] + [detokenizer.flush()])
        assert decode(before) + told == decode(before + tokens)


def test_characters_of_several_byte_pieces_are_told_whole():
    decode, _ = sentencepiece()
    tokens = [2, *(11 + byte for byte in "é🙂".encode()), 5]
    detokenizer = Detokenizer(decode)
    assert [detokenizer.add(token) for token in tokens] == ["The", "", "é", "", "", "", "🙂", "s"]


@pytest.mark.parametrize("make", [Byte, lambda: BPE(vocab_size=300)])
def test_no_half_character_is_told(make):
    tokenizer = make()
    tokenizer.fit([TEXT])
    detokenizer = Detokenizer(tokenizer.decode)
    pieces = [detokenizer.add(token) for token in tokenizer.encode(TEXT)]
    assert "".join(pieces) == TEXT
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "" in pieces


@pytest.mark.parametrize("seed", range(20))
def test_text_ends_before_the_first_stop_string_wherever_pieces_end(seed):
    draw = random.Random(seed)
    text = "".join(draw.choice("ab\n") for _ in range(60))
    strings = ["".join(draw.choice("ab\n") for _ in range(draw.randint(1, 6))) for _ in range(3)]
    places = [text.find(string) for string in strings if string in text]
    stop, told, rest = StopStrings(strings), "", text
    while rest and not stop.met:
        size = draw.randint(0, 4)
        told += stop.add(rest[:size])
        rest = rest[size:]
        assert text.startswith(told)
        # What is held back is no more than the beginning of a string.
        assert len(stop.held) < 6 or stop.met
    told += stop.flush()
    assert stop.met == bool(places)
    if not places:
        assert told == text
    else:
        # A longer string that begins earlier may end later than one that is met first.
        assert not any(string in told for string in strings)
        assert any(text.startswith(told + string) for string in strings)


def test_a_continuation_says_why_it_ended():
    tokenizer = Byte()
    tokenizer.fit()

    def told(text, **settings):
        ids = [*text.encode(), 256]
        continuation = Continuation([1], decode=tokenizer.decode, end_tokens={256}, **settings)
        pieces = []
        for token in ids:
            pieces.append(continuation.add(token))
            if continuation.ended:
                break
        assert "".join(pieces) == continuation.text
        return continuation.text, len(continuation.tokens), continuation.ended

    assert told("abc", limit=9) == ("abc", 3, "end")
    assert told("abc", limit=2) == ("ab", 2, "length")
    assert told("aé", limit=2) == ("a\N{REPLACEMENT CHARACTER}", 2, "length")
    assert told("abcd", limit=9, stop=["bc"]) == ("a", 3, "stop")
    assert told("ab", limit=9, stop=["bc"]) == ("ab", 2, "end")
    assert told("abbc", limit=3, stop=["bc"]) == ("abb", 3, "length")
