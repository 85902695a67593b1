"""Tokenizers: byte-level BPE, bytes, characters, and any `tokenizer.json` or model of SentencePiece.

Each is a `tokenizers.Tokenizer` inside, so each saves one file that the `tokenizers` and `transformers` libraries load.
"""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from txtrain.data import marian
from txtrain.data.any_tokenizer import END_OF_TEXT, NAMES, ROLES, Role, Tokenizer, first_texts
from txtrain.data.special import DecoderTokens, named_ids
from txtrain.data.template import ChatTemplate, named_tokens
from txtrain.data.tokenizer_files import content, drop_opening, find_file, read_core
from txtrain.errors import UserError

__all__ = ["BPE", "END_OF_TEXT", "NAMES", "ROLES", "TARGET_FILE", "Byte", "Char", "Pretrained", "Role", "Tokenizer"]

TARGET_FILE = "target_tokenizer.json"  # beside tokenizer.json, where sources and targets have one each
SIZE = 4096  # tokens of a BPE, unless the user says
UNKNOWN = "\N{REPLACEMENT CHARACTER}"

log = logging.getLogger(__name__)


class BPE(Tokenizer):
    """Byte-level byte-pair encoding as in GPT-2 (https://arxiv.org/abs/1508.07909), lossless on any text.

    Args:
        vocab_size: number of tokens: 256 bytes, the end of text, and merges. Default: `SIZE`, or fewer where the text
            allows no more.
    """

    sample_characters = 3_000_000  # merges hardly change beyond this, and it takes two seconds

    def __init__(self, *, vocab_size: int | None = None) -> None:
        super().__init__()
        self._size, self._fits = SIZE if vocab_size is None else vocab_size, vocab_size is None

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
        core.train_from_iterator(first_texts(texts, self.sample_characters), trainer)
        self.adopt(core, END_OF_TEXT)
        if self.vocab_size < self._size:
            log.info("tokenizer.vocab_size is %d, which is what the training text allows.", self.vocab_size)

    def adopt(self, core: tokenizers.Tokenizer, end_of_text: str) -> None:
        reached = core.get_vocab_size()
        if reached < self._size and not self._fits:  # also of one in the cache, which was not typed
            raise UserError(
                f"tokenizer.vocab_size={self._size} is more than the training text allows: "
                f"set tokenizer.vocab_size={reached} or less, or give more text"
            )
        super().adopt(core, end_of_text)

    def fingerprint(self) -> str:
        made = f"bpe vocab_size={self._size} sample={self.sample_characters} tokenizers={tokenizers.__version__}"
        return made + self._named_roles()


class Byte(Tokenizer):
    """One token per byte of UTF-8, whose id is the byte's value, and 256 for the end of text."""

    learns: ClassVar[bool] = False
    cuts_anywhere: ClassVar[bool] = True

    def fit(self, texts: Iterable[str] = ()) -> None:
        letters = byte_letters()
        core = tokenizers.Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(letters)}, merges=[]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
        core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in self._new_tokens()])
        self.adopt(core, END_OF_TEXT)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def id_arrays(self, texts: list[str]) -> list[NDArray[np.integer[Any]]]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]

    def fingerprint(self) -> str:
        return "byte" + self._named_roles()


class Char(Tokenizer):
    """One token per character of the training split; any other character becomes the replacement character U+FFFD."""

    cuts_anywhere: ClassVar[bool] = True

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

    def excerpt(self, texts: Iterable[str], share: float) -> list[str]:
        """All characters, whatever the share: it learns nothing else."""
        return ["".join(sorted(set().union(*texts)))]

    def fingerprint(self) -> str:
        return "char" + self._named_roles()

    def adopt(self, core: tokenizers.Tokenizer, end_of_text: str) -> None:
        super().adopt(core, end_of_text)
        self._ids = core.get_vocab(with_added_tokens=False)


class Pretrained(Tokenizer):
    """A tokenizer that was trained before: a `tokenizer.json`, or a folder (a run, a Hugging Face model) that has one.

    Marian's `source.spm` and `target.spm` with their `vocab.json`, and T5's `spiece.model`, serve as well.

    Args:
        path: the file or folder.
        end_of_text: the token that ends a document. Default: the `eos_token` in the folder's `tokenizer_config.json`,
            else the first of `<|endoftext|>`, `</s>`, `<|end_of_text|>`, `<eos>`, `[SEP]` that the vocabulary has.
        add_bos: whether documents begin with the special tokens that the file sets before a text, such as `<s>`. False
            takes them out of the file that a run saves, so that prompts begin without them too; None, the rule of runs
            that do not say, leaves them out of training alone.
    """

    learns: ClassVar[bool] = False
    endings = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "[SEP]")

    def __init__(self, *, path: str, end_of_text: str | None = None, add_bos: bool | None = None) -> None:
        super().__init__()
        self._path, self.add_bos = path, add_bos
        self._ending = end_of_text
        self._side: marian.Side | None = None

    @property
    def _file(self) -> Path:
        path = Path(self._path).expanduser()
        return find_file(path) if path.is_dir() else path

    def fit(self, texts: Iterable[str] = ()) -> None:
        self.load(self._file)

    def load(self, path: str | Path) -> None:
        core = read_core(Path(path), f"tokenizer.path={self._path}")
        endings = [self._ending] if self._ending else [*self._configured(), *self.endings]
        for ending in endings:
            if core.token_to_id(ending) is not None:
                return self.adopt(core, ending)
        raise UserError(
            f"tokenizer.path={self._path} has no token {' or '.join(endings)} to end a document: "
            "name one of its tokens with tokenizer.end_of_text=TOKEN"
        )

    def adopt(self, core: tokenizers.Tokenizer, end_of_text: str) -> None:
        super().adopt(core, end_of_text)
        self._side = marian.Side.of(core)
        if self.add_bos is False:
            drop_opening(core)
            if self._before_text():
                raise UserError(
                    f"tokenizer.add_bos=false: {self._path} sets tokens before a text in a way that cannot be taken "
                    "out: leave it out, or give another tokenizer.json"
                )

    @property
    def opening(self) -> list[int]:
        if self._core is None and self.add_bos:
            self.fit()  # a chat's template is asked for before the data
        return super().opening

    @property
    def vocab_size(self) -> int:
        return super().vocab_size if self._side is None else self._side.size

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return super().encode_batch(texts) if self._side is None else self._side.encode(texts, closed=False)

    def read_batch(self, texts: list[str]) -> list[list[int]]:
        return super().read_batch(texts) if self._side is None else self._side.encode(texts, closed=True)

    def read_marked(self, text: str) -> list[int]:
        return super().read_marked(text) if self._side is None else self.read_batch([text])[0]

    def save(self, path: str | Path) -> None:
        super().save(path)
        marian.copy_files(self._file.parent, Path(path).parent)

    def fingerprint(self) -> str:
        try:
            made = hashlib.sha256(content(self._file)).hexdigest()
        except OSError as error:
            raise UserError(
                f"tokenizer.path={self._path} cannot be read ({error.strerror}): give a tokenizer.json or its folder"
            ) from None
        rule = "" if self.add_bos is None else f" add_bos={self.add_bos}"
        return f"pretrained {made} {self._ending or self._configured()}{rule}"

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
        return Pretrained(path=str(path), end_of_text=self._ending, add_bos=self.add_bos)

    def of_targets(self) -> "Pretrained":
        folder = self._file.parent
        if not marian.has_files(folder):
            return self
        return Pretrained(path=str(folder / marian.TARGET), end_of_text=self._ending, add_bos=self.add_bos)

    def _configured(self) -> list[str]:
        """The end of text that a Hugging Face folder names, if it does."""
        token = named_tokens(self._file.parent).get("eos_token")
        return [token] if token else []


def byte_letters() -> list[str]:
    """The printable character by which byte-level tokenizers write each byte, in the order of bytes (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
