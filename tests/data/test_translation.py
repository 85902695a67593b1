"""Parallel text: what is read, what is held out, what a batch holds, and mistakes in one line."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from txtrain.data.catalogues import Catalogues
from txtrain.data.hub_pairs import HubPairs
from txtrain.data.pair_files import PairFiles
from txtrain.data.parallel import Pair
from txtrain.data.split import linked
from txtrain.data.tokenizer import BPE, Byte, Char, Pretrained, Tokenizer
from txtrain.data.translation import held_out
from txtrain.errors import UserError

WORDS = ["ada", "bob", "cyd", "dan", "eve", "fay", "gus", "hal", "ivy", "jon", "kim", "lea"]
PAIRS = [(f"{a} sees {b}", f"{b} wird von {a} gesehen") for a in WORDS for b in WORDS if a != b]


def written(folder: Path, pairs: Any = PAIRS, name: str = "pairs.tsv") -> Path:
    path = folder / name
    if name.endswith(".tsv"):
        path.write_text("".join(f"{source}\t{target}\textra\n" for source, target in pairs), encoding="utf-8")
    else:
        rows = [{"source": source, "translation": {"de": target}} for source, target in pairs]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def made(folder: Path, *, tokenizer: Tokenizer | None = None, **options: Any) -> PairFiles:
    options = {"path": str(folder / "pairs.tsv"), "cache_dir": str(folder / "cache"), "batch_tokens": 256} | options
    data = PairFiles(tokenizer=tokenizer or Byte(), **options)
    data.prepare()
    return data


def texts(data: Any, split: str) -> list[tuple[str, str]]:
    samples = data.samples(split)
    sides = (data.tokenizer, data.target_tokenizer)
    return [
        tuple(tokenizer.decode(ids) for tokenizer, ids in zip(sides, samples.ids(index), strict=True))
        for index in range(len(samples))
    ]


def test_every_pair_is_on_one_side(tmp_path: Path) -> None:
    written(tmp_path)
    data = made(tmp_path)
    train, validation = texts(data, "train"), texts(data, "validation")
    assert sorted(train + validation) == sorted(PAIRS)
    assert 0.04 < len(validation) / len(PAIRS) < 0.2
    assert data.references(range(len(validation))) == validation
    origin = data.origin(3)
    assert origin.text == " | ".join(train[3])
    assert origin.places == [f"{tmp_path / 'pairs.tsv'} line {PAIRS.index(train[3]) + 1}"]


def test_nothing_leaks_over_the_split() -> None:
    """Pairs hang together by their sources and by their targets, over any number of steps."""
    random = np.random.default_rng(0)
    pairs = [Pair(f"Source {a}!", f"target {b}") for a, b in random.integers(0, 2000, (1000, 2))]
    pairs += [Pair(pair.source.upper().rstrip("!"), f"other {number}") for number, pair in enumerate(pairs[:50])]
    held = held_out(pairs, 0.3)
    assert 150 < sum(held) < 500
    sides = {side: [set(), set()] for side in (0, 1)}
    for pair, out in zip(pairs, held, strict=True):
        for side, found in sides.items():
            found[out].add("".join(filter(str.isalnum, pair[side].casefold())))
    assert not any(train & validation for train, validation in sides.values())
    groups = linked((pair.source, pair.target) for pair in pairs)
    turned = linked((pair.source, pair.target) for pair in pairs[::-1])
    assert groups == turned[::-1], "names of groups do not depend on the order"


def test_text_that_is_the_same_on_both_sides_does_not_link_what_has_nothing_in_common() -> None:
    assert len(set(linked([("a", "b"), ("b", "c")]))) == 2
    assert len(set(linked([("a", "b"), ("c", "b"), ("c", "d"), ("e", "f")]))) == 2


@pytest.mark.parametrize("tokenizer", [Byte, Char, lambda: BPE(vocab_size=280)])
def test_a_batch_by_hand(tmp_path: Path, tokenizer: Any) -> None:
    written(tmp_path)
    data = made(tmp_path, tokenizer=tokenizer())
    samples, end = data.samples("train"), data.tokenizer.end_of_text
    index = np.array([5, -1, 0, 60])
    batch = samples.batch(index)
    pairs = texts(data, "train")
    longest = [0, 0]
    for row, number in enumerate(index):
        chosen = pairs[number] if number >= 0 else ()
        source, target = [[*data.tokenizer.encode(text), end] for text in chosen] or ([0], [])
        real = batch["source_padding"][row]
        assert batch["source"][row][real].tolist() == source
        assert real.tolist() == sorted(real.tolist(), reverse=True), "padding comes last"
        valid = batch["targets"][row] >= 0
        assert batch["targets"][row][valid].tolist() == target
        assert batch["tokens"][row][valid].tolist() == [end, *target][: len(target)]
        longest = [max(longest[0], len(source)), max(longest[1], len(target))]
    assert [batch["source"].size(1), batch["targets"].size(1)] == longest
    assert batch["index"].tolist() == index.tolist()
    assert batch["source_padding"].dtype == torch.bool


def test_separate_vocabularies(tmp_path: Path) -> None:
    written(tmp_path)
    data = made(tmp_path, tokenizer=Char(), vocabulary="separate")
    assert data.sizes()["vocab_size"] != data.sizes()["target_vocab_size"]
    assert sorted(texts(data, "train") + texts(data, "validation")) == sorted(PAIRS)
    data.save(tmp_path)
    again = made(tmp_path, tokenizer=Pretrained(path=str(tmp_path)), vocabulary="separate")
    assert again.samples("train").ids(7) == data.samples("train").ids(7)
    assert "separate" not in made(tmp_path, tokenizer=Char()).description()
    (tmp_path / "one").mkdir()
    data.tokenizer.save(tmp_path / "one" / "tokenizer.json")
    with pytest.raises(UserError, match=r"data.vocabulary=separate needs .*target_tokenizer.json is not there"):
        made(tmp_path, tokenizer=Pretrained(path=str(tmp_path / "one")), vocabulary="separate")


def test_pairs_that_are_too_long_are_left_out_of_training_and_cut_in_validation(tmp_path: Path) -> None:
    written(tmp_path, [*PAIRS, *((f"{source} " * 9, target) for source, target in PAIRS)])
    data = made(tmp_path, seq_len=40)
    assert max(len(source) for source, _ in texts(data, "train")) < 40
    lengths = data.samples("validation").lengths
    assert lengths.max() == 40
    assert max(len(source) for source, _ in data.references(range(len(lengths)))) > 40
    assert "training pairs of more than data.seq_len=40 tokens, left out" in data.details()["too long"]


def test_another_length_or_batch_tokenizes_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    written(tmp_path)
    data = made(tmp_path)
    monkeypatch.setattr(PairFiles, "pairs", lambda self: pytest.fail("read again"))
    assert made(tmp_path, seq_len=50, batch_tokens=99).fingerprint() == data.fingerprint()


def test_all_ways_to_give_pairs_are_alike(tmp_path: Path) -> None:
    sources, targets = zip(*PAIRS, strict=True)
    (tmp_path / "texts.en").write_text("".join(f"{line}\n" for line in sources), encoding="utf-8")
    (tmp_path / "texts.de").write_text("".join(f"{line}\r\n" for line in targets), encoding="utf-8")
    written(tmp_path)
    written(tmp_path, name="pairs.jsonl")
    fields = {"target_field": "translation.de"}
    cases = [
        {},
        {"path": str(tmp_path / "pairs.jsonl"), **fields},
        {"path": str(tmp_path / "texts.en"), "target_path": str(tmp_path / "texts.de")},
    ]
    expected = texts(made(tmp_path), "train")
    for case in cases:
        assert texts(made(tmp_path, **case), "train") == expected
    hub = HubPairs(
        name=str(hub_folder(tmp_path)),
        source_field="source",
        target_field="translation.de",
        tokenizer=Byte(),
        cache_dir=str(tmp_path / "cache"),
    )
    hub.prepare()
    assert texts(hub, "train") == expected


def hub_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    written(folder, name="train.jsonl")
    return folder


def test_pairs_to_validate_on_may_be_given(tmp_path: Path) -> None:
    written(tmp_path)
    written(tmp_path, [("a b", "c d"), ("", "nothing"), ("e", "f")], name="held.tsv")
    data = made(tmp_path, validation_path=str(tmp_path / "held.tsv"))
    assert len(data.samples("train")) == len(PAIRS)
    assert texts(data, "validation") == [("a b", "c d"), ("e", "f")]


def test_empty_sides_are_left_out_and_counted(tmp_path: Path) -> None:
    written(tmp_path, [*PAIRS, ("a", ""), ("", "b")])
    data = made(tmp_path)
    assert sorted(texts(data, "train") + texts(data, "validation")) == sorted(PAIRS)
    assert data.details()["empty"] == "2 pairs with nothing on one side, left out"


def test_a_message_of_software_is_translated_by_people(tmp_path: Path) -> None:
    data = Catalogues(tokenizer=BPE(vocab_size=400), cache_dir=str(tmp_path))
    data.prepare()
    pairs = texts(data, "train")
    assert len(pairs) > 2500
    assert ("Creation date", "Erstellungsdatum") in pairs + texts(data, "validation")
    assert len(set(pairs)) > 0.99 * len(pairs)
    other = Catalogues(language="fr", tokenizer=Byte(), cache_dir=str(tmp_path))
    assert other.fingerprint() != data.fingerprint()


MISTAKES = {
    "line 2 has no tab: give source, tab, target": ({}, {"pairs.tsv": "a\tb\nab\n"}),
    "a has 3 lines and .*b has 2: give two files": (
        {"path": "a", "target_path": "b"},
        {"a": "1\n2\n3\n", "b": "1\n2\n"},
    ),
    "line 1 has no field target .*data.target_field": ({"path": "a.jsonl"}, {"a.jsonl": '{"source": "x"}\n'}),
    "field target is int, not text": ({"path": "a.jsonl"}, {"a.jsonl": '{"source": "x", "target": 3}\n'}),
    "has no pair of texts": ({}, {"pairs.tsv": "\t\n"}),
    "leaves no pair for": ({}, {"pairs.tsv": "a\tb\n"}),
    "data.path=missing.tsv does not exist": ({"path": "missing.tsv"}, {}),
    "holds no pairs: give .tsv or .jsonl, or the targets' file as data.target_path": (
        {"path": "a.md"},
        {"a.md": "text\n"},
    ),
    "is not UTF-8 text": ({}, {"pairs.tsv": b"a\tb\n\xff\tx\n"}),
    "data.batch_tokens=0 is too small": ({"batch_tokens": 0}, {"pairs.tsv": "a\tb\n"}),
    "batched by tokens: set data.batch_tokens": ({"batch_size": 4}, {"pairs.tsv": "a\tb\n"}),
    "has no sources: set data.validation_path": ({"validation_target_path": "b"}, {"pairs.tsv": "a\tb\n"}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes(tmp_path: Path, monkeypatch: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    options, contents = MISTAKES[message]
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as caught:
        made(tmp_path, **{"path": "pairs.tsv", **options})
    assert "\n" not in str(caught.value)


def test_a_language_or_package_that_is_not_there(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(UserError, match=r"data.language=xx has no catalogue .* one of .*de, .*fr, "):
        Catalogues(language="xx", tokenizer=Byte(), cache_dir=str(tmp_path)).prepare()

    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UserError, match=r"package django, which is not installed: pip install 'txtrain\[tasks\]'"):
        Catalogues(tokenizer=Byte(), cache_dir=str(tmp_path)).prepare()


def test_targets_that_a_tokenizer_ends_by_itself_end_once(tmp_path: Path) -> None:
    """As T5's and BART's do; a tokenizer of a language model gets an end."""
    from tokenizers import processors

    written(tmp_path)
    byte = Byte()
    byte.fit()
    byte.core.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 256)]
    )
    byte.save(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text('{"decoder_start_token_id": 7, "eos_token_id": 256}')
    data = made(tmp_path, tokenizer=Pretrained(path=str(tmp_path)))
    source, target = data.samples("train").ids(0)
    assert source[0] == source[-1] == 256 != source[-2]
    batch = data.samples("train").batch(np.array([0]))
    assert batch["tokens"][0, :2].tolist() == [7, 256]
    assert batch["targets"][0].tolist() == target
