"""What every tokenizer can do, and the names of special tokens."""

import copy
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from txtrain.data.special import DecoderTokens
from txtrain.data.template import ChatTemplate
from txtrain.data.tokenizer_files import read_core
from txtrain.errors import UserError
from txtrain.records import read_json

END_OF_TEXT = "<|endoftext|>"

Role = Literal["mask", "class", "separator", "padding"]
# What tokenizers call their special tokens, by what they are for: ours first.
ROLES: dict[Role, tuple[str, ...]] = {
    "mask": ("<mask>", "[MASK]"),
    "class": ("<cls>", "[CLS]", "<s>"),
    "separator": ("<sep>", "[SEP]", "</s>"),
    "padding": ("<pad>", "[PAD]"),
}
# What chat templates and Hugging Face folders call them.
NAMES: dict[Role, str] = {"mask": "mask_token", "class": "cls_token", "separator": "sep_token", "padding": "pad_token"}

# Encoding uses every core. Said aloud, because a later fork (a DataLoader worker) otherwise prints a warning.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


class Tokenizer(ABC):
    """Text to integers and back; unusable until `fit` or `load` was called."""

    sample_characters: int | None = None  # how much text `fit` wants to see; None is all of it
    learns: ClassVar[bool] = True  # something from text
    cuts_anywhere: ClassVar[bool] = False  # whether a text gives the same tokens in any two pieces
    add_bos: bool | None = None  # whether documents begin with what the tokenizer's file sets before a text

    def __init__(self) -> None:
        self._core: tokenizers.Tokenizer | None = None
        self._end_of_text = -1
        self.roles: list[Role] = []  # special tokens that there must be, beside the end of text

    @abstractmethod
    def fit(self, texts: Iterable[str]) -> None:
        """Learn what there is to learn from the training split, given in a random but fixed order."""

    def excerpt(self, texts: Iterable[str], share: float) -> list[str]:
        """Of training texts what `fit` would see, or a share of that."""
        most = self.sample_characters
        return list(texts if most is None else first_texts(texts, int(most * share)))

    @abstractmethod
    def fingerprint(self) -> str:
        """What this tokenizer will be, given the same training text."""

    @property
    def core(self) -> tokenizers.Tokenizer:
        """The `tokenizers` object that does the work."""
        if self._core is None:
            raise RuntimeError("a tokenizer works only after fit() or load()")
        return self._core

    @property
    def vocab_size(self) -> int:
        return self.core.get_vocab_size(with_added_tokens=True)

    @property
    def id_bound(self) -> int:
        """One more than the largest id, which may be beyond `vocab_size` where a vocabulary has gaps."""
        return max(self.vocab_size, 1 + max(self.core.get_vocab(with_added_tokens=True).values()))

    @property
    def end_of_text(self) -> int:
        """The id that ends a document, and so also stands before one."""
        self.core  # noqa: B018 - says so when there is none yet
        return self._end_of_text

    def need(self, *roles: Role) -> None:
        """Say, before `fit`, what special tokens there must be beside the end of text."""
        self.roles += [role for role in roles if role not in self.roles]

    def special(self, role: Role) -> int:
        """The id of a special token.

        Raises:
            UserError: the vocabulary has none for this.
        """
        token = self._find(role)
        if token is None:
            raise UserError(
                f"the tokenizer has no {role} token ({', '.join(ROLES[role])}), which this task needs: start from a "
                "model that has one, or train a tokenizer, such as tokenizer=bpe"
            )
        return token

    def _find(self, role: Role) -> int | None:
        named = self.named_tokens().get(NAMES[role])
        ids = (self.core.token_to_id(name) for name in (*([named] if named else []), *ROLES[role]))
        return next((token for token in ids if token is not None), None)

    @property
    def filler(self) -> int:
        """What fills up rows that are shorter than others: the padding token, or without one the end of text."""
        token = self._find("padding")
        return self.end_of_text if token is None else token

    @property
    def special_ids(self) -> frozenset[int]:
        """All ids that no text is made of."""
        added = self.core.get_added_tokens_decoder().items()
        return frozenset({self.end_of_text, *(token for token, content in added if content.special)})

    def named_tokens(self) -> dict[str, str]:
        """Special tokens by the names that chat templates know, such as `eos_token`."""
        own = {NAMES[role]: names[0] for role, names in ROLES.items()} if self._core is not None else {}
        there = {name: token for name, token in own.items() if self.core.token_to_id(token) is not None}
        return {"eos_token": END_OF_TEXT} | there

    def _new_tokens(self) -> list[str]:
        """Special tokens that `fit` makes: the end of text, and what was asked for."""
        return [END_OF_TEXT, *(ROLES[role][0] for role in self.roles)]

    def _named_roles(self) -> str:
        """What `need` adds to the fingerprint."""
        return "".join(f" {role}" for role in self.roles)

    def chat_template(self) -> ChatTemplate | None:
        """How conversations are written for this tokenizer, if it says so."""
        return None

    def decoder_tokens(self) -> DecoderTokens:
        """What the decoder of an encoder-decoder begins with, and what ends its text."""
        return DecoderTokens(start=self.end_of_text, ends=frozenset({self.end_of_text}))

    def twin(self) -> "Tokenizer":
        """Another one with the same settings, for the targets of a translation; before `fit` or `load`."""
        return copy.deepcopy(self)

    def of_targets(self) -> "Tokenizer":
        """What cuts the targets of a translation whose vocabulary is that of the sources; before `fit` or `load`."""
        return self

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, on all cores, without special tokens: `<|endoftext|>` in a text is spelt out."""
        return [encoding.ids for encoding in self.core.encode_batch_fast(texts, add_special_tokens=False)]

    def id_arrays(self, texts: list[str]) -> list[NDArray[np.integer[Any]]]:
        """The ids of `encode_batch` as arrays."""
        return [np.array(ids, dtype=np.int64) for ids in self.encode_batch(texts)]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def read_batch(self, texts: list[str]) -> list[list[int]]:
        """The same with the special tokens that the tokenizer's file sets around a text."""
        return [encoding.ids for encoding in self.core.encode_batch(texts)]

    @property
    def opening(self) -> list[int]:
        """The tokens that each document begins with, as a prompt does, such as `<s>`; [] if there are none."""
        return self._before_text() if self.add_bos else []

    def _before_text(self) -> list[int]:
        """The special tokens that the tokenizer's file sets before a text."""
        encoding = self.core.encode("a")
        return list(encoding.ids[: encoding.sequence_ids.index(0)]) if 0 in encoding.sequence_ids else []

    def between_texts(self) -> list[int]:
        """The special tokens that the tokenizer's file sets between a pair of texts (RoBERTa's has two); [] if none."""
        pair = self.core.encode("a", "a")
        ends = [place for place, text in enumerate(pair.sequence_ids) if text is not None]
        inside = range(ends[0], ends[-1]) if ends else ()
        return [pair.ids[place] for place in inside if pair.sequence_ids[place] is None]

    def read_marked(self, text: str) -> list[int]:
        """The same of one text, in which special tokens that it spells are these tokens."""
        self.core.encode_special_tokens = False
        try:
            return list(self.core.encode(text).ids)
        finally:
            self.core.encode_special_tokens = True

    def decode(self, ids: list[int]) -> str:
        """The text of the ids, end-of-text left out."""
        return self.core.decode([token for token in ids if token != self._end_of_text], skip_special_tokens=False)

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json`."""
        # Not by the library's own `save`, which raises bare Exceptions.
        Path(path).write_text(self.core.to_str(pretty=True), encoding="utf-8")

    def load(self, path: str | Path) -> None:
        """Take over what `save` wrote."""
        self.adopt(read_core(Path(path), str(path)), END_OF_TEXT)

    def is_in(self, path: Path) -> bool:
        """Whether a `tokenizer.json` is this one."""
        return os.path.lexists(path) and bool(read_json(path) == json.loads(self.core.to_str()))

    def adopt(self, core: tokenizers.Tokenizer, end_of_text: str) -> None:
        """Work with this one from now on."""
        end = core.token_to_id(end_of_text)
        assert end is not None, f"no token {end_of_text}"
        core.encode_special_tokens = True  # a text that holds "<|endoftext|>" must not end a document
        core.no_truncation()
        core.no_padding()
        self._core, self._end_of_text = core, end


def first_texts(texts: Iterable[str], characters: int) -> Iterable[str]:
    """The first texts, up to so many characters in all."""
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return
