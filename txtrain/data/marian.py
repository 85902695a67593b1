"""Marian's tokenizers: for each side a model of SentencePiece cuts text, and one `vocab.json` numbers all pieces.

Each side is a `tokenizers` object with the numbers of all pieces. It holds those of the other side, and the special
tokens, with a space before them, so that no text is cut into them; after the last number come its own pieces that have
none. The library cannot number them as Marian does, so `Side` goes over what it says.
"""

import json
import re
import shutil
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, processors

from txtrain.data.charmap import CharacterMap
from txtrain.data.sentencepiece import NORMAL, USER_DEFINED, SentencePiece
from txtrain.data.special import read_json
from txtrain.data.unigram import Unigram, may_tie
from txtrain.errors import UserError

SOURCE, TARGET, VOCABULARY = "source.spm", "target.spm", "vocab.json"
FILES = (SOURCE, TARGET, VOCABULARY)
SPECIAL = ("</s>", "<unk>", "<pad>")
LAST = " <the last number is before this>"
LANGUAGE = re.compile(r">>.*?<<", re.DOTALL)  # of the target, before a source


def has_files(folder: Path) -> bool:
    """Whether these are a folder's tokenizers."""
    return all((folder / name).is_file() for name in FILES)


def copy_files(folder: Path, other: Path) -> None:
    """Copies a folder's files, where it has them all, for transformers to read."""
    if has_files(folder) and folder.resolve() != other.resolve():
        for name in FILES:
            shutil.copyfile(folder / name, other / name)


def read_side(path: Path) -> tokenizers.Tokenizer:
    """One side, `source.spm` or `target.spm`, with the numbers of the `vocab.json` beside it.

    Raises:
        UserError: a file is damaged, or has what Marian's do not have.
    """
    model, vocabulary = SentencePiece.read(path), path.with_name(VOCABULARY)
    numbers = read_json(vocabulary)
    if sorted(numbers.values(), key=str) != sorted(range(len(numbers)), key=str):
        raise UserError(f"{vocabulary} does not number its tokens from 0 to {len(numbers) - 1}: restore it")
    if missing := [token for token in SPECIAL[:2] if token not in numbers]:
        raise UserError(f"{vocabulary} has no {missing[0]}: restore it")
    if model.kind != "unigram" or model.byte_fallback:
        raise UserError(f"{path} is of kind {model.kind}{' with bytes' * model.byte_fallback}: txtrain reads unigram")
    own = {piece.text: piece.score for piece in model.pieces if piece.type in (NORMAL, USER_DEFINED)}
    tokens = sorted(numbers, key=lambda token: numbers[token])
    entries = [
        (token, own.get(token, 0.0)) if token in own or token in SPECIAL else (f" {token}", 0.0) for token in tokens
    ]
    entries += [(LAST, 0.0), *((piece, score) for piece, score in own.items() if piece not in numbers)]
    core = tokenizers.Tokenizer(models.Unigram(entries, unk_id=numbers["<unk>"]))
    core.normalizer, core.pre_tokenizer = model.normalizer(), model.pre_tokenizer()
    core.decoder = decoders.Sequence([decoders.Replace(" ", ""), *model.decoder()])
    core.add_special_tokens([token for token in SPECIAL if token in numbers])
    end = [("</s>", numbers["</s>"])]
    core.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=end)
    return core


class Side:
    """Numbers pieces as Marian does.

    A run of characters that this side does not know is one piece, which has a number if the other side has it. A piece
    without a number is unknown. `>>de<<` before a source is a token.

    Args:
        core: what `read_side` made.
    """

    def __init__(self, core: tokenizers.Tokenizer) -> None:
        written = json.loads(core.to_str())
        vocabulary, steps = written["model"]["vocab"], written["normalizer"]["normalizers"]
        tokens = [token for token, _ in vocabulary]
        self.size, self._end, self._unknown = tokens.index(LAST), tokens.index("</s>"), tokens.index("<unk>")
        self._numbers = {token.removeprefix(" "): number for number, token in enumerate(tokens[: self.size])}
        maps = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
        self._normalize = [CharacterMap(b64decode(one)) for one in maps]
        # Characters are mapped before: the library takes other ones together than SentencePiece does.
        written["normalizer"]["normalizers"] = [step for step in steps if step["type"] != "Precompiled"]
        written["added_tokens"], written["post_processor"] = [], None
        for number, token in enumerate(tokens):
            if token in SPECIAL:  # in a text it is text
                vocabulary[number][0] = f" {token}"
        self._core = tokenizers.Tokenizer.from_str(json.dumps(written))
        own = [*vocabulary[: self.size], *vocabulary[self.size + 1 :]]
        self._exact = Unigram({token: score for token, score in own if not token.startswith(" ")})

    @classmethod
    def of(cls, core: tokenizers.Tokenizer) -> "Side | None":
        """None of any other tokenizer."""
        return None if core.token_to_id(LAST) is None else cls(core)

    def encode(self, texts: Sequence[str], *, closed: bool) -> list[list[int]]:
        """Numbers of each text, `closed` by the end of text."""
        found = [LANGUAGE.match(text) for text in texts]
        rest = [text[match.end() :] if match else text for text, match in zip(texts, found, strict=True)]
        for normalize in self._normalize:
            rest = [normalize(text) for text in rest]
        pieces = [encoding.tokens for encoding in self._core.encode_batch(rest, add_special_tokens=False)]
        for row, text in enumerate(rest):
            if may_tie(text):
                pieces[row] = [piece for word in self._words(text) for piece in self._exact.cut(word)]
        numbers, unknown = self._numbers, self._unknown
        return [
            [
                *([numbers.get(match[0], unknown)] if match else []),
                *(numbers.get(piece, unknown) for piece in row),
                *[self._end] * closed,
            ]
            for match, row in zip(found, pieces, strict=True)
        ]

    def _words(self, text: str) -> list[str]:
        """What the pieces are cut of."""
        normal = self._core.normalizer.normalize_str(text)
        return [word for word, _ in self._core.pre_tokenizer.pre_tokenize_str(normal)]
