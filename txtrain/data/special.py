"""What a decoder begins with and what ends its text, as Hugging Face folders say it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from txtrain.errors import UserError
from txtrain.records import read_object

FILE = "generation_config.json"
KEYS = ("decoder_start_token_id", "forced_bos_token_id", "eos_token_id")


@dataclass(frozen=True, kw_only=True)
class DecoderTokens:
    """Ids for the decoder of an encoder-decoder.

    Args:
        start: what it reads first.
        forced: what it then has to write (BART).
        ends: any of these ends its text.
    """

    start: int
    forced: tuple[int, ...] = ()
    ends: frozenset[int]

    @property
    def begin(self) -> tuple[int, ...]:
        """What it has read before the first token that it writes by itself."""
        return (self.start, *self.forced)

    def save(self, folder: Path) -> None:
        """Writes the file that transformers reads too."""
        ids = dict(zip(KEYS, (self.start, list(self.forced), sorted(self.ends)), strict=True))
        plain = {key: value[0] if isinstance(value, list) and len(value) == 1 else value for key, value in ids.items()}
        (folder / FILE).write_text(json.dumps({key: value for key, value in plain.items() if value != []}) + "\n")


def named_ids(folder: Path) -> dict[str, list[int]]:
    """The ids by their keys, that a folder's generation_config.json names, else its config.json."""
    said = read_json(folder / "config.json") | read_json(folder / FILE)
    return {key: _ids(key, said.get(key), folder) for key in KEYS}


def barred_ids(folder: Path) -> list[int]:
    """Tokens that a folder says are never written, such as Marian's padding; longer bad words are not read."""
    said = read_json(folder / "config.json") | read_json(folder / FILE)
    words = [word[0] for word in said.get("bad_words_ids") or [] if isinstance(word, list) and len(word) == 1]
    return _ids("bad_words_ids", words, folder) + _ids("suppress_tokens", said.get("suppress_tokens"), folder)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a file, empty if there is no such file."""
    return read_object(file, do="restore it") if os.path.lexists(file) else {}


def _ids(key: str, value: Any, folder: Path) -> list[int]:
    """A number, a list of them, or none."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(number) is int for number in ids):
        raise UserError(f"{folder} says {key}={value}, which is no number of a token: restore its {FILE}")
    return ids
