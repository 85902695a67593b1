"""Tokenizers: byte-level BPE, bytes, characters, and any `tokenizer.json`.

Each is a `tokenizers.Tokenizer` inside, so each saves one file that the `tokenizers` and `transformers` libraries load.
"""

import copy
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from txtrain.data.special import DecoderTokens, named_ids
from txtrain.data.template import ChatTemplate, named_tokens
from txtrain.errors import UserError

END_OF_TEXT = "<|endoftext|>"
TARGET_FILE = "target_tokenizer.json"  # beside tokenizer.json, where sources and targets have one each
UNKNOWN = "\N{REPLACEMENT CHARACTER}"

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

    def __init__(self) -> None:
        self._core: tokenizers.Tokenizer | None = None
        self._end_of_text = -1
        self._roles: list[Role] = []

    @abstractmethod
    def fit(self, texts: Iterable[str]) -> None:
        """Learn what there is to learn from the training split, given in a random but fixed order."""

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
    def end_of_text(self) -> int:
        """The id that ends a document, and so also stands before one."""
        self.core  # noqa: B018 - says so when there is none yet
        return self._end_of_text

    def need(self, *roles: Role) -> None:
        """Say, before `fit`, what special tokens there must be beside the end of text."""
        self._roles += [role for role in roles if role not in self._roles]

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
        return [END_OF_TEXT, *(ROLES[role][0] for role in self._roles)]

    def _named_roles(self) -> str:
        """What `need` adds to the fingerprint."""
        return "".join(f" {role}" for role in self._roles)

    def chat_template(self) -> ChatTemplate | None:
        """How conversations are written for this tokenizer, if it says so."""
        return None

    def decoder_tokens(self) -> DecoderTokens:
        """What the decoder of an encoder-decoder begins with, and what ends its text."""
        return DecoderTokens(start=self.end_of_text, ends=frozenset({self.end_of_text}))

    def twin(self) -> "Tokenizer":
        """Another one with the same settings, for the targets of a translation; before `fit` or `load`."""
        return copy.deepcopy(self)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, on all cores, without special tokens: `<|endoftext|>` in a text is spelt out."""
        return [encoding.ids for encoding in self.core.encode_batch_fast(texts, add_special_tokens=False)]

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def decode(self, ids: list[int]) -> str:
        """The text of the ids, end-of-text left out."""
        return self.core.decode([token for token in ids if token != self._end_of_text], skip_special_tokens=False)

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json`."""
        # Not by the library's own `save`, which raises bare Exceptions.
        Path(path).write_text(self.core.to_str(pretty=True), encoding="utf-8")

    def load(self, path: str | Path) -> None:
        """Take over what `save` wrote."""
        self.adopt(tokenizers.Tokenizer.from_file(str(path)), END_OF_TEXT)

    def adopt(self, core: tokenizers.Tokenizer, end_of_text: str) -> None:
        """Work with this one from now on."""
        end = core.token_to_id(end_of_text)
        assert end is not None, f"no token {end_of_text}"
        core.encode_special_tokens = True  # a text that holds "<|endoftext|>" must not end a document
        core.no_truncation()
        core.no_padding()
        self._core, self._end_of_text = core, end


class BPE(Tokenizer):
    """Byte-level byte-pair encoding as in GPT-2 (https://arxiv.org/abs/1508.07909), lossless on any text.

    Args:
        vocab_size: number of tokens: 256 bytes, the end of text, and merges.
    """

    sample_characters = 3_000_000  # merges hardly change beyond this, and it takes two seconds

    def __init__(self, *, vocab_size: int = 4096) -> None:
        super().__init__()
        self._size = vocab_size

    def fit(self, texts: Iterable[str]) -> None:
        least = 256 + len(self._new_tokens())
        if self._size < least:
            raise UserError(
                f"tokenizer.vocab_size={self._size} does not hold the 256 bytes and {', '.join(self._new_tokens())}: "
                f"set tokenizer.vocab_size={least} or more"
            )
        core = tokenizers.Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self._size,
            min_frequency=2,
            show_progress=False,
            special_tokens=self._new_tokens(),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )
        core.train_from_iterator(_sample(texts, self.sample_characters), trainer)
        reached = core.get_vocab_size()
        if reached < self._size:
            raise UserError(
                f"tokenizer.vocab_size={self._size} is more than the training text allows: "
                f"set tokenizer.vocab_size={reached} or less, or give more text"
            )
        self.adopt(core, END_OF_TEXT)

    def fingerprint(self) -> str:
        made = f"bpe vocab_size={self._size} sample={self.sample_characters} tokenizers={tokenizers.__version__}"
        return made + self._named_roles()


class Byte(Tokenizer):
    """One token per byte of UTF-8, whose id is the byte's value, and 256 for the end of text."""

    def fit(self, texts: Iterable[str] = ()) -> None:
        letters = byte_letters()
        core = tokenizers.Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(letters)}, merges=[]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
        core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in self._new_tokens()])
        self.adopt(core, END_OF_TEXT)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def fingerprint(self) -> str:
        return "byte" + self._named_roles()


class Char(Tokenizer):
    """One token per character of the training split; any other character becomes the replacement character U+FFFD."""

    def __init__(self) -> None:
        super().__init__()
        self._ids: dict[str, int] = {}

    def fit(self, texts: Iterable[str]) -> None:
        seen: set[str] = set()
        for text in texts:
            seen.update(text)
        characters = sorted(seen - {UNKNOWN}) + [UNKNOWN]
        model = models.WordLevel({character: i for i, character in enumerate(characters)}, unk_token=UNKNOWN)
        core = tokenizers.Tokenizer(model)
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
        core.decoder = decoders.Fuse()
        core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in self._new_tokens()])
        self.adopt(core, END_OF_TEXT)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        unknown = self._ids[UNKNOWN]
        return [[self._ids.get(character, unknown) for character in text] for text in texts]

    def fingerprint(self) -> str:
        return "char" + self._named_roles()

    def adopt(self, core: tokenizers.Tokenizer, end_of_text: str) -> None:
        super().adopt(core, end_of_text)
        self._ids = core.get_vocab(with_added_tokens=False)


class Pretrained(Tokenizer):
    """A tokenizer that was trained before: a `tokenizer.json`, or a folder (a run, a Hugging Face model) that has one.

    Args:
        path: the file or folder.
        end_of_text: the token that ends a document. Default: the `eos_token` in the folder's `tokenizer_config.json`,
            else the first of `<|endoftext|>`, `</s>`, `<|end_of_text|>`, `<eos>`, `[SEP]` that the vocabulary has.
    """

    endings = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "[SEP]")

    def __init__(self, *, path: str, end_of_text: str | None = None) -> None:
        super().__init__()
        self._path = path
        self._ending = end_of_text

    @property
    def _file(self) -> Path:
        path = Path(self._path).expanduser()
        return path / "tokenizer.json" if path.is_dir() else path

    def fit(self, texts: Iterable[str] = ()) -> None:
        self.load(self._file)

    def load(self, path: str | Path) -> None:
        try:
            core = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"tokenizer.path={self._path} cannot be read ({error}): give a tokenizer.json") from None
        endings = [self._ending] if self._ending else [*self._configured(), *self.endings]
        for ending in endings:
            if core.token_to_id(ending) is not None:
                return self.adopt(core, ending)
        raise UserError(
            f"tokenizer.path={self._path} has no token {' or '.join(endings)} to end a document: "
            "name one of its tokens with tokenizer.end_of_text=TOKEN"
        )

    def fingerprint(self) -> str:
        try:
            content = self._file.read_bytes()
        except OSError as error:
            raise UserError(
                f"tokenizer.path={self._path} cannot be read ({error.strerror}): give a tokenizer.json or its folder"
            ) from None
        return f"pretrained {hashlib.sha256(content).hexdigest()} {self._ending or self._configured()}"

    def named_tokens(self) -> dict[str, str]:
        end = self._core.id_to_token(self._end_of_text) if self._core else None
        return ({"eos_token": end} if end else {}) | named_tokens(self._file.parent)

    def chat_template(self) -> ChatTemplate | None:
        return ChatTemplate.of_folder(self._file.parent)

    def decoder_tokens(self) -> DecoderTokens:
        named = named_ids(self._file.parent)
        return DecoderTokens(
            start=(named["decoder_start_token_id"] or [self.end_of_text])[0],
            forced=tuple(named["forced_bos_token_id"]),
            ends=frozenset(named["eos_token_id"] or [self.end_of_text]),
        )

    def twin(self) -> "Pretrained":
        path = self._file.parent / TARGET_FILE
        if not path.is_file():
            raise UserError(
                f"data.vocabulary=separate needs a tokenizer of the targets, and {path} is not there: put it there, or "
                "set data.vocabulary=shared"
            )
        return Pretrained(path=str(path), end_of_text=self._ending)

    def _configured(self) -> list[str]:
        """The end of text that a Hugging Face folder names, if it does."""
        token = named_tokens(self._file.parent).get("eos_token")
        return [token] if token else []


def _sample(texts: Iterable[str], characters: int) -> Iterable[str]:
    """The first texts, up to so many characters in all."""
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return


def byte_letters() -> list[str]:
    """The printable character by which byte-level tokenizers write each byte, in the order of bytes (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
