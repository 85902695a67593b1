"""Masking: how much is chosen, what becomes of it, what is never touched, and that it repeats exactly."""

import math
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from txtrain.data.masked import Masking
from txtrain.data.packing import IGNORED, PADDING, Windows
from txtrain.data.pairs import PairMasking
from txtrain.data.tokenizer import BPE, Byte, Char, Pretrained
from txtrain.data.words import Words
from txtrain.errors import UserError

TEXT = (Path(__file__).parents[1] / "golden" / "text.txt").read_text()
LENGTH = 62


@pytest.fixture(scope="module")
def tokenizer():
    made = BPE(vocab_size=600)
    made.need("mask", "class", "separator")
    made.fit([TEXT])
    return made


@pytest.fixture(scope="module")
def windows(tokenizer, tmp_path_factory):
    """Three documents in windows."""
    path = tmp_path_factory.mktemp("windows") / "train.bin"
    end = tokenizer.end_of_text
    third = len(TEXT) // 3
    ids = [[*tokenizer.encode(TEXT[n * third : (n + 1) * third]), end] for n in range(3)]
    np.array([end, *(token for document in ids for token in document)], dtype="uint16").tofile(path)
    return Windows(path=path, dtype="uint16", seq_len=LENGTH, packing="concat", end_of_text=end)


def drawn(windows, tokenizer, masking, epochs=1, seed=0):
    """All samples of some epochs: what the model sees, the targets, and the text as it was."""
    samples = masking.samples(windows, tokenizer, seed=seed)
    index = np.arange(len(samples))
    batches = [samples.batch(index, epoch) for epoch in range(epochs)]
    batches = [batch | {"padding": real(batch)} for batch in batches]
    seen, targets, padding = (
        np.concatenate([batch[name].numpy() for batch in batches]) for name in ("tokens", "targets", "padding")
    )
    return seen, targets, padding


def real(batch):
    return batch.get("padding", torch.ones_like(batch["tokens"], dtype=torch.bool))


def within(count, total, share):
    """Whether a count is no more than 5 standard deviations from what it should be."""
    return abs(count - share * total) <= 5 * math.sqrt(total * share * (1 - share)) + 1


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_rates(windows, tokenizer, unit):
    """15% of the ordinary tokens are targets; of these 80% are masks, 10% other tokens, 10% as they were."""
    seen, targets, padding = drawn(windows, tokenizer, Masking(unit=unit), epochs=8)
    special, chosen = sorted(tokenizer.special_ids), targets != IGNORED
    original = np.where(chosen, targets, seen)
    ordinary = padding & ~np.isin(original, special)
    assert chosen.sum() / ordinary.sum() == pytest.approx(0.15, abs=0.004)
    assert not (chosen & ~ordinary).any(), "a special token or padding is a target"
    masked, same = seen[chosen] == tokenizer.special("mask"), seen[chosen] == targets[chosen]
    # Spans have one fate for up to ten words, so that fewer are independent.
    total = chosen.sum() // (30 if unit == "span" else 1)
    scale = chosen.sum() / total
    assert within(masked.sum() / scale, total, 0.8)
    assert within(same.sum() / scale, total, 0.1 + 0.1 / 596)
    others = seen[chosen][~masked & ~same]
    assert not np.isin(others, special).any()
    assert len(np.unique(others)) > 250, "other tokens come from the whole vocabulary"


def test_other_shares(windows, tokenizer):
    seen, targets, padding = drawn(windows, tokenizer, Masking(rate=0.4, masked=1.0, random=0.0))
    chosen = targets != IGNORED
    assert (seen[chosen] == tokenizer.special("mask")).all()
    assert chosen.sum() / padding.sum() == pytest.approx(0.4, abs=0.02)


def test_a_sample_depends_on_seed_epoch_and_index_alone(windows, tokenizer):
    samples = Masking().samples(windows, tokenizer, seed=3)
    whole = samples.batch(np.arange(8), 2)
    for index in (5, 0, 7):
        alone = samples.batch(np.array([index]), 2)
        assert all((whole[name][index] == alone[name][0]).all() for name in whole)
    again = Masking().samples(windows, tokenizer, seed=3).batch(np.arange(8), 2)
    assert all((whole[name] == again[name]).all() for name in whole)
    for other in (samples.batch(np.arange(8), 1), Masking().samples(windows, tokenizer, seed=4).batch(np.arange(8), 2)):
        assert (other["targets"] != whole["targets"]).any()


def test_the_text_is_between_class_and_separator(windows, tokenizer):
    seen, targets, padding = drawn(windows, tokenizer, Masking())
    original = np.where(targets != IGNORED, targets, seen)
    assert (original[:, 0] == tokenizer.special("class")).all()
    text = [row[keep][1:-1] for row, keep in zip(original, padding, strict=True)]
    assert all(row[keep][-1] == tokenizer.special("separator") for row, keep in zip(original, padding, strict=True))
    assert (np.concatenate(text) == windows.stream[: windows.targets]).all()
    empty = Masking().samples(windows, tokenizer, seed=0).batch(np.array([0, PADDING]))
    assert not empty["padding"][1].any()
    assert (empty["targets"][1] == IGNORED).all()


def test_documents_are_told_apart(windows, tokenizer):
    apart = Windows(
        path=windows.path, dtype="uint16", seq_len=LENGTH, packing="documents", end_of_text=tokenizer.end_of_text
    )
    batch = Masking().samples(apart, tokenizer, seed=0).batch(np.arange(len(apart)))
    ends = batch["tokens"] == tokenizer.end_of_text
    ends &= batch.get("padding", ends)
    assert ends.sum() == 3, "the first end of text, and those between three documents"
    rows, columns = ends.nonzero(as_tuple=True)
    assert (batch["positions"][rows, columns] == 0).all()
    assert (batch["documents"][rows, columns] == 1).all()


def test_whole_words(windows, tokenizer):
    """Of a word either all tokens are targets or none is."""
    seen, targets, padding = drawn(windows, tokenizer, Masking(unit="word"))
    original, words = np.where(targets != IGNORED, targets, seen), Words(tokenizer)
    pieces = 0
    for row, found, keep in zip(original, targets, padding, strict=True):
        number = np.cumsum(words.begin(row[keep]))
        chosen = found[keep] != IGNORED
        for word in np.unique(number[chosen]):
            assert chosen[number == word].all()
            pieces += (number == word).sum() > 1
    assert pieces > 50, "words of several tokens are chosen too"


def test_spans_are_as_long_as_in_the_paper(windows, tokenizer):
    """Words of a span: geometric with p = 0.2, at most 10, 3.8 on average, but for spans that meet a border."""
    seen, targets, padding = drawn(windows, tokenizer, Masking(unit="span", rate=0.05), epochs=8)
    words, lengths = Words(tokenizer), []
    original = np.where(targets != IGNORED, targets, seen)
    for row, found, keep in zip(original, targets, padding, strict=True):
        number = np.cumsum(words.begin(row[keep]))
        chosen = np.flatnonzero(found[keep] != IGNORED)
        runs = np.split(chosen, np.flatnonzero(np.diff(chosen) > 1) + 1)
        lengths += [len(np.unique(number[run])) for run in runs if len(run)]
    assert max(lengths) <= 10
    # A budget of 3 tokens cuts most spans: what is left of a geometric length at 1 token is 1 in 5 or more.
    assert np.mean(np.array(lengths) == 1) > 0.2
    free = Masking(unit="span", rate=0.9)
    assert (drawn(windows, tokenizer, free)[1] != IGNORED).sum() / padding.sum() * 8 == pytest.approx(0.9, abs=0.05)


def test_words_begin_where_the_tokenizer_cuts(tokenizer):
    """The tokenizer's own pattern says so too, but for runs of spaces, which it keeps whole."""
    encoding = tokenizer.core.encode(TEXT.replace("'", ""), add_special_tokens=False)
    cuts = np.array([a != b for a, b in zip([None, *encoding.word_ids], encoding.word_ids, strict=False)])
    begins = Words(tokenizer).begin(np.array(encoding.ids))
    assert (begins == cuts).mean() > 0.97
    letters = np.array([token.lstrip("Ġ").isascii() and token.lstrip("Ġ").isalpha() for token in encoding.tokens])
    assert (begins == cuts)[letters].mean() > 0.999


def test_word_pieces(tmp_path):
    """WordPiece marks what goes on; BERT's own pre-tokenizer agrees."""
    core = tokenizers.Tokenizer(WordPiece(unk_token="[UNK]"))
    core.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]"])
    core.train_from_iterator([TEXT], trainer)
    core.save(str(tmp_path / "tokenizer.json"))
    made = Pretrained(path=str(tmp_path))
    made.fit()
    assert [made.core.id_to_token(made.special(role)) for role in ("mask", "class", "separator")] == [
        "[MASK]", "[CLS]", "[SEP]",
    ]  # fmt: skip
    assert made.core.id_to_token(made.filler) == "[PAD]"
    encoding = core.encode(TEXT)
    cuts = np.array([a != b for a, b in zip([None, *encoding.word_ids], encoding.word_ids, strict=False)])
    # [UNK] stands for one word, and is special.
    assert (Words(made).begin(np.array(encoding.ids)) == cuts).all()


@pytest.mark.parametrize("kind", [Byte, Char])
def test_every_tokenizer_gets_the_tokens_that_are_needed(kind):
    made, plain = kind(), kind()
    made.need("mask", "class", "separator")
    made.fit([TEXT])
    plain.fit([TEXT])
    assert len({made.special(role) for role in ("mask", "class", "separator")} | {made.end_of_text}) == 4
    assert made.vocab_size == plain.vocab_size + 3
    assert made.fingerprint() != plain.fingerprint()
    assert made.special("mask") not in made.encode("a <mask> b")
    with pytest.raises(UserError, match="no mask token"):
        plain.special("mask")


def test_pairs(windows, tokenizer):
    """Half of the second passages are what follows; both halves are real text, cut after a sentence."""
    samples = PairMasking(rate=1e-9).samples(_narrower(windows), tokenizer, seed=0)
    index = np.arange(len(samples) - 1)
    batches = [samples.batch(index, epoch) for epoch in range(8)]
    follows = np.concatenate([batch["follows"].numpy() for batch in batches])
    assert within(follows.sum(), len(follows), 0.5)
    stream, separator = samples.windows.stream.astype(np.int64), tokenizer.special("separator")
    text = stream.tobytes()
    for batch in batches:
        for row, (tokens, types, padding) in enumerate(
            zip(batch["tokens"].numpy(), batch["types"].numpy(), real(batch).numpy(), strict=True)
        ):
            first, second = np.flatnonzero(tokens == separator)
            assert (types == (np.arange(len(tokens)) > first) * padding).all()
            a, b = tokens[1:first], tokens[first + 1 : second]
            place = row * samples.windows.seq_len
            assert (stream[place : place + len(a)] == a).all()
            at = place + len(a)
            if len(b) > 4:  # a few tokens may also stand elsewhere
                assert (stream[at : at + len(b)] == b).all() == bool(batch["follows"][row])
            assert b.tobytes() in text
    empty = samples.batch(np.array([PADDING]))
    assert empty["follows"].item() == IGNORED
    assert not empty["padding"].any()


def _narrower(windows):
    return Windows(
        path=windows.path, dtype="uint16", seq_len=LENGTH - 1, packing="concat", end_of_text=windows.end_of_text
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "data.masking.rate=0.0"),
        ({"unit": "letter"}, "data.masking.unit=letter"),
        ({"masked": 0.8, "random": 0.3}, "no shares of a whole"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        Masking(**options)
