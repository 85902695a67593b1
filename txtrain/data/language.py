"""The LightningDataModule of language: text from a source, tokenized once, packed into windows."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from txtrain.data import cache
from txtrain.data.base import Data, Origin, check_least
from txtrain.data.masked import MaskedWindows, Masking
from txtrain.data.order import permute
from txtrain.data.packing import Windows
from txtrain.data.progress import Progress
from txtrain.data.rows import RowWindows
from txtrain.data.seal import Damaged
from txtrain.data.split import Document, Split
from txtrain.data.template import ChatTemplate
from txtrain.data.token_stream import read_counts, write
from txtrain.errors import UserError
from txtrain.printable import short

PROMPT_TOKENS = 16  # how much of the validation set is a prompt
SHOWN_TOKENS = 24  # of the beginning of a sample


class LanguageData(Data):
    """Windows of tokens for language models; a subclass says where the text comes from.

    Args:
        seq_len: tokens in a window.
        packing: `concat` lets a token see earlier documents in its window, `documents` does not and restarts positions.
        validation_fraction: of the documents that is held out; of the text, where there is one document.
        masking: makes the samples of a masked language model of windows. Default: a window is a sample, to be
        continued. base: as in `Data`.
    """

    content = "text"
    between = ""  # a prompt and what the model writes after it: one text
    alike = ("seq_len", "packing")

    def __init__(
        self,
        *,
        seq_len: int = 256,
        packing: Literal["concat", "documents"] = "concat",
        validation_fraction: float = 0.1,
        masking: Masking | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        check_least({"seq_len": seq_len}, least=1 if masking is None else 8)
        if not 0 < validation_fraction < 1:
            raise UserError(
                f"data.validation_fraction={validation_fraction} is not between 0 and 1: "
                "set data.validation_fraction=0.1"
            )
        if packing not in ("concat", "documents"):
            raise UserError(f"data.packing={packing} is unknown: set data.packing=concat or data.packing=documents")
        self.seq_len = seq_len
        self.packing: Literal["concat", "documents"] = packing
        self.validation_fraction = validation_fraction
        self.masking = masking
        if masking is not None:
            self.content = masking.content
            masking.check(packing)
            self.tokenizer.need("mask", "class", "separator")
        self.train_tokens = self.validation_tokens = self.validation_bytes = 0

    @abstractmethod
    def identity(self) -> Any:
        """What tells this text from any other, cheaply and as plain JSON: paths, sizes and times, or names."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """The documents, in the same order whenever it is called."""

    def validation_documents(self) -> Iterator[Document] | None:
        """Documents to validate on, where the user gave them apart."""
        return None

    def chat_template(self) -> ChatTemplate | None:
        """How conversations are written for the model, where that is known."""
        return self.tokenizer.chat_template()

    def prompt(self, text: str | None) -> list[int]:
        """Tokens for the model to go on from: a text, or without one how the validation set begins."""
        if text:
            return [*self.tokenizer.opening, *self.tokenizer.encode(text)]
        return self._first_validation()["tokens"][0, :PROMPT_TOKENS].tolist()

    def shown_prompt(self, prompt: Sequence[int]) -> str:
        """A prompt for people to read."""
        opening = list(self.tokenizer.opening)
        return self.tokenizer.decode(
            list(prompt[len(opening) :] if list(prompt[: len(opening)]) == opening else prompt)
        )

    @property
    def end_tokens(self) -> frozenset[int]:
        """Any of these ends what the model writes."""
        return frozenset({self.tokenizer.end_of_text})

    def sizes(self) -> dict[str, int]:
        vocab_size = self.tokenizer.vocab_size if self.train_tokens or self.validation_tokens else 1
        return {"vocab_size": vocab_size, "max_len": self.seq_len}

    def description(self) -> str:
        tokens = f"{short(self.train_tokens)} tokens to train on, {short(self.validation_tokens)} to validate"
        return f"{tokens}; vocabulary of {self.tokenizer.vocab_size}"

    def details(self) -> dict[str, str]:
        return {} if self.masking is None else {"masking": self.masking.description()}

    @property
    def documents_apart(self) -> bool:
        return self.packing == "documents"

    def unit(self) -> str:
        return f"sequences of {self.seq_len}"

    def save(self, run_dir: Path) -> None:
        self.tokenizer.save(run_dir / "tokenizer.json")
        if template := self.chat_template():
            template.save(run_dir)

    def check_saved(self, run_dir: Path) -> None:
        if not self.tokenizer.is_in(run_dir / "tokenizer.json"):
            raise UserError(
                f"resume={run_dir}: the data have changed since the run began and make another tokenizer: "
                "put them back, or start a new run"
            )

    def origin(self, index: int) -> Origin:
        windows = self.windows("train")
        parts = windows.parts(index, SHOWN_TOKENS)
        text = " | ".join(self.tokenizer.decode(ids) for _, ids in parts)
        return Origin(token=parts[0][0], places=windows.origins(index), text=text)

    def fingerprint(self) -> str:
        """The name of the tokens: another one for another text, tokenizer or split."""
        plain: dict[str, Any] = {"opening": []} if self.tokenizer.add_bos and self.masking is not None else {}
        return cache.fingerprint(
            source=self.identity(),
            tokenizer=self.tokenizer.fingerprint(),
            validation_fraction=self.validation_fraction,
            **plain,
        )

    def hold_out_all(self) -> None:
        self.validation_fraction = 1.0

    def prepare_evaluation(self) -> None:
        self.tokenize()
        if not self.validation_tokens:
            raise UserError("the data leave no text to evaluate on: give more, or type data.validation_fraction=0.5")

    def tokenize(self) -> None:
        """Make or find the tokens; safe to call from any number of processes at once."""
        self.open(cache.entry(self.cache_dir, self.fingerprint(), self._write, self.check_entry))

    def check_entry(self, folder: Path) -> None:
        """Reads an entry of the cache.

        Raises:
            Exception: something in it cannot be.
        """
        self.open(folder)
        for split, tokens in (("train", self.train_tokens), ("validation", self.validation_tokens)):
            path = folder / f"{split}.bin"
            there = path.stat().st_size // np.dtype(self.dtype).itemsize
            if there < tokens + 1 or (there > tokens + 1 and not self._opening):
                raise Damaged(f"{path.name} has {there} tokens, not {tokens + 1}")
            cache.check_tokens(path, self.dtype, self.tokenizer, tokens=there)

    def prepare(self) -> None:
        """Make or find the tokens, and refuse those that could not be trained on."""
        self.tokenize()
        if not self.validation_bytes:
            raise UserError(
                f"{self._named()} leaves no text for validation: give more or set data.validation_fraction=0.5"
            )
        if self.train_tokens < self.seq_len:
            raise UserError(
                f"data.seq_len={self.seq_len} is more than the {self.train_tokens} tokens of the training text: "
                f"give more text or set data.seq_len={self.train_tokens} or less"
            )

    def open(self, folder: Path) -> None:
        """Work with an entry of the cache."""
        self.folder = folder
        self.tokenizer.load(folder / "tokenizer.json")
        counts = read_counts(folder)
        self.dtype = counts.dtype
        self.train_tokens = counts.train_tokens
        self.validation_tokens = counts.validation_tokens
        self.validation_bytes = counts.validation_bytes

    def _write(self, folder: Path) -> None:
        apart = self.validation_documents()
        split = Split.of(self.documents(), fraction=0.0 if apart is not None else self.validation_fraction)
        if not split.lengths.sum():
            raise UserError(f"{self._named()} holds no text: give some")
        with Progress("learning the tokenizer"):
            self.tokenizer.fit(split.sample(self.documents(), self.tokenizer.sample_characters))
        texts = chain(split.sides(self.documents()), ((text, True) for _, text in apart or ()))
        write(folder, self.tokenizer, texts, self._opening, characters=None if apart else int(split.lengths.sum()))

    @property
    def _opening(self) -> list[int]:
        """What stands before each document: masking opens each sample itself."""
        return self.tokenizer.opening if self.masking is None else []

    def _named(self) -> str:
        """The source in the words of the command line."""
        return "the data"

    def samples(self, split: Literal["train", "validation"]) -> Windows | RowWindows | MaskedWindows:
        """The packed windows of a split, and what masking makes of them: in validation the same for every seed."""
        windows = self.windows(split)
        if self.masking is None:
            return windows
        assert isinstance(windows, Windows)
        return self.masking.samples(windows, self.tokenizer, seed=self.seed if split == "train" else 0)

    def windows(self, split: Literal["train", "validation"]) -> Windows | RowWindows:
        """The packed windows of a split."""
        return Windows(
            path=self.folder / f"{split}.bin",
            dtype=self.dtype,
            seq_len=self.seq_len - (self.masking.added if self.masking is not None else 0),
            packing=self.packing,
            end_of_text=self.tokenizer.end_of_text,
            opening=self._opening,
        )

    def _first_validation(self) -> dict[str, Tensor]:
        """The window that validation begins with, on any number of ranks."""
        windows = self.windows("validation")
        return windows.batch(permute(np.zeros(1, dtype=np.int64), size=len(windows), seed=0, epoch=0))
