"""Tokenizers that folders have in SentencePiece's files: the ids are those of transformers, which uses its library."""

import json
import random
import warnings
from pathlib import Path

import pytest
import sentencepiece
import transformers

from tests.data.pieces import train, write_marian
from txtrain.data.charmap import CharacterMap
from txtrain.data.sentencepiece import SentencePiece
from txtrain.data.tokenizer import Pretrained
from txtrain.errors import UserError

ROOT = Path(__file__).parent.parent.parent
DOCUMENTS = (ROOT / "docs/encoding.md", ROOT / "docs/norm.md")
ENGLISH = [line for path in DOCUMENTS for line in path.read_text().splitlines() if line.strip()]
# Another alphabet, so that each side knows characters and words that the other does not.
GREEK = [line.translate({ord(a): ord("α") + number for number, a in enumerate("abcdefghijklmno")}) for line in ENGLISH]
SCRIPTS = {
    "ascii": range(32, 127),
    "latin": range(0xA0, 0x250),
    "greek": range(0x370, 0x400),
    "combining": [*range(0x300, 0x340), *map(ord, "aeioucnAEIO ")],
    "hangul": [*range(0x1100, 0x1200), *range(0xAC00, 0xAD00)],
    "wide": [*range(0x3000, 0x3100), *range(0xFF00, 0xFFF0), ord(" ")],
    "spaces": [*map(ord, "ab \t\n\r\u200b\xa0\u2003\u3000\x00\x07▁")],
    "emoji": [*range(0x1F600, 0x1F640), 0x200D, 0xFE0F, 0x1F1E9, ord(" ")],
}


def random_texts(known: list[str], count: int) -> list[str]:
    """Words of known texts in any order and number, and characters of all scripts."""
    draw = random.Random(0)
    words = " ".join(known).split()
    texts = ["", " ", "\n"]
    for _ in range(count):
        mixed = draw.choices(words, k=draw.randrange(12))
        for place in range(len(mixed)):
            if draw.random() < 0.2:
                script = draw.choice(list(SCRIPTS.values()))
                mixed[place] = "".join(map(chr, draw.choices(script, k=draw.randrange(6))))
        texts.append(draw.choice([" ", "  ", "", "\n"]).join(mixed))
    for script in SCRIPTS.values():
        texts += ["".join(map(chr, draw.choices(script, k=draw.randrange(20)))) for _ in range(count // 8)]
    return texts


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marian")
    size = write_marian(folder, ENGLISH, GREEK, extra=[">>deu<<", ">>ell<<"], vocab_size=400)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that sacremoses is recommended, which it does not use on texts
        theirs = transformers.MarianTokenizer.from_pretrained(folder)
    return folder, size, theirs


def sides(folder):
    source = Pretrained(path=str(folder))
    target = source.of_targets()
    source.fit()
    target.fit()
    return source, target


def test_ids_of_both_sides_are_those_of_transformers(marian, tmp_path):
    """Numbers of pieces that one side or none has, of runs of unknown characters, and of languages."""
    folder, size, theirs = marian
    texts = random_texts(ENGLISH + GREEK, 1000)
    texts += [f">>{name}<<{text}" for name, text in zip(["deu", "xyz", "", "a b"] * 10, texts[100:140], strict=True)]
    texts += [" >>deu<< a", ">>deu", ">>d\ne<< a", "a >>ell<<"]
    expected = [theirs(text).input_ids for text in texts], [theirs(text_target=text).input_ids for text in texts]
    plain, unknown = theirs(texts[500:600], add_special_tokens=False).input_ids, theirs.unk_token_id
    assert sum(row.count(unknown) > 0 for row in expected[0]) > 300
    assert expected[0] != expected[1]
    for number, tokenizer in enumerate(sides(folder)):
        assert tokenizer.vocab_size == size
        assert tokenizer.read_batch(texts) == expected[number]
        # As runs keep it, far from the folder.
        tokenizer.save(tmp_path / f"{number}.json")
        again = Pretrained(path=str(tmp_path / f"{number}.json"))
        again.fit()
        assert again.read_batch(texts) == expected[number]
        assert again.vocab_size == size
        if number == 0:
            assert again.encode_batch(texts[500:600]) == plain
            assert again.read_marked(texts[500]) == expected[0][500]
    assert (tmp_path / "source.spm").read_bytes() == (folder / "source.spm").read_bytes()


def test_texts_are_those_of_transformers(marian):
    folder, size, theirs = marian
    draw = random.Random(1)
    rows = [draw.choices(range(2, size - 1), k=draw.randrange(1, 20)) for _ in range(200)]
    expected = [theirs.decode(row, clean_up_tokenization_spaces=False) for row in rows]
    for tokenizer in sides(folder):
        assert [tokenizer.decode(row).strip() for row in rows] == expected
        ends = tokenizer.core.token_to_id("</s>")
        assert tokenizer.end_of_text == ends == theirs.eos_token_id
        assert ends not in tokenizer.encode("a </s> b"), "a text that spells it does not end"
        assert tokenizer.core.decode([ends], skip_special_tokens=True) == ""


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf", "identity"])
def test_characters_are_mapped_as_by_sentencepiece(rule, tmp_path):
    train(tmp_path / "a.spm", ENGLISH[:40], vocab_size=100, normalization_rule_name=rule)
    compiled = SentencePiece.read(tmp_path / "a.spm").character_map
    off = dict.fromkeys(("remove_extra_whitespaces", "add_dummy_prefix", "escape_whitespaces"), False)
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name=rule, **off)
    texts = [text.replace("\0", "") for text in random_texts(ENGLISH, 300)]
    map_characters = CharacterMap(compiled) if compiled else str
    assert bool(compiled) == (rule != "identity")
    assert [map_characters(text) for text in texts] == [normalizer.normalize(text) for text in texts]


def test_t5(tmp_path):
    train(tmp_path / "spiece.model", ENGLISH, vocab_size=300, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = Pretrained(path=str(tmp_path))
    ours.fit()
    texts = random_texts(ENGLISH + GREEK, 300)
    assert ours.read_batch(texts) == [theirs(text).input_ids for text in texts]
    assert ours.vocab_size == len(theirs)
    marked = "a <extra_id_0> b <extra_id_99> c</s>"
    assert ours.read_marked(marked) == theirs(marked).input_ids
    row = theirs(" ".join(ENGLISH[:3])).input_ids[:-1]
    assert ours.decode(row) == theirs.decode(row)


def test_what_is_wrong_with_files_is_told(marian, tmp_path):
    for name in ("source.spm", "target.spm", "vocab.json"):
        (tmp_path / name).write_bytes((marian[0] / name).read_bytes())

    def refusal(**files):
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_bytes(content)
        with pytest.raises(UserError) as error:
            Pretrained(path=str(tmp_path)).fit()
        for name in files:
            (tmp_path / name.replace("_", ".")).write_bytes((marian[0] / name.replace("_", ".")).read_bytes())
        assert "\n" not in str(error.value)
        return str(error.value)

    whole = (marian[0] / "source.spm").read_bytes()
    assert "source.spm is no model of SentencePiece" in refusal(source_spm=whole[:-1000])
    assert "source.spm is no model of SentencePiece" in refusal(source_spm=b"")
    assert "vocab.json cannot be read (it is not JSON" in refusal(vocab_json=b"{")
    assert "vocab.json does not number its tokens" in refusal(vocab_json=b'{"a": 1, "b": 1}')
    assert "vocab.json has no <unk>" in refusal(vocab_json=b'{"a": 0, "</s>": 1}')
    train(tmp_path / "pairs.spm", ENGLISH, vocab_size=200, model_type="bpe")
    assert "is of kind bpe" in refusal(source_spm=(tmp_path / "pairs.spm").read_bytes())
