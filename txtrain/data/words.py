"""Where words begin in a sequence of tokens, told from the tokens alone."""

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from txtrain.data.tokenizer import Tokenizer, byte_letters

SPACES = frozenset(" \t\n\r▁")
LETTER, DIGIT, OTHER, SPACE = range(4)
BYTES = {letter: byte for byte, letter in enumerate(byte_letters())}


class Words:
    """Says of each token whether it begins a word: what WordPiece marks, or else what GPT-2's pattern would cut.

    That pattern (https://github.com/openai/gpt-2) cuts before a space, and between letters, digits and all else.

    Args:
        tokenizer: whose vocabulary it is.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        core = tokenizer.core
        described = json.loads(core.to_str())
        size, model = tokenizer.vocab_size, described["model"]
        pieces = [core.id_to_token(token) or "" for token in range(size)]
        self._alone = np.zeros(size, dtype=bool)
        self._alone[sorted(tokenizer.special_ids)] = True
        if model.get("type") == "WordPiece":
            prefix = model["continuing_subword_prefix"]
            self._opens = np.array([not piece.startswith(prefix) for piece in pieces])
            self._first = self._last = np.zeros(size, dtype=np.int8)
            self._space = np.zeros(size, dtype=bool)
            return
        texts = [_letters(piece) for piece in pieces] if _is_byte_level(described) else pieces
        kinds = [[_kind(character) for character in text] or [OTHER] for text in texts]
        self._opens = np.array([kind[0] == SPACE for kind in kinds])
        self._space = np.array([text in (" ", "▁") for text in texts])  # goes with what comes after it
        self._first = np.array([kind[0] for kind in kinds], dtype=np.int8)
        self._last = np.array([kind[-1] for kind in kinds], dtype=np.int8)

    def begin(self, tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """tokens (T,) → whether each begins a word; the first one does, and each special token is one of its own."""
        begin = np.ones(len(tokens), dtype=bool)
        before, after = tokens[:-1], tokens[1:]
        begin[1:] = self._opens[after] | ((self._last[before] != self._first[after]) & ~self._space[before])
        begin[1:] |= self._alone[before] | self._alone[after]
        return begin


def _is_byte_level(described: dict[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps(described.get("pre_tokenizer"))


def _letters(piece: str) -> str:
    """The text of a byte-level token. A byte of a longer character counts as a letter, which most of those are."""
    return "".join(chr(BYTES[letter]) if BYTES.get(letter, 128) < 128 else "a" for letter in piece)


def _kind(character: str) -> int:
    if character in SPACES:
        return SPACE
    return LETTER if character.isalpha() else DIGIT if character.isnumeric() else OTHER
