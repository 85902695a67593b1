"""The LightningDataModule of language: text from a source, tokenized once, packed into windows."""

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import LightningDataModule
from torch import Tensor

from txtrain.data import cache
from txtrain.data.loader import EvaluationLoader, StepLoader
from txtrain.data.order import permute
from txtrain.data.packing import Windows
from txtrain.data.rows import RowWindows
from txtrain.data.split import Document, Split
from txtrain.data.template import ChatTemplate
from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError

PROMPT_TOKENS = 16  # how much of the validation set is a prompt


class LanguageData(LightningDataModule):
    """Windows of tokens for language models; a subclass says where the text comes from.

    Args:
        tokenizer: turns text into tokens; `prepare` trains it if need be.
        seed: of the order of training windows.
        seq_len: tokens in a window.
        packing: `concat` lets a token see earlier documents in its window, `documents` does not and restarts positions.
        batch_size: windows per optimizer step, over all devices.
        micro_batch_size: most windows per device and forward pass. Default: as many as that gives.
        validation_fraction: of the documents that is held out; of the text, where there is one document.
        num_workers: processes that prepare batches in advance; 0 is enough for a memory map.
        cache_dir: where tokens are kept.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        seed: int = 0,
        seq_len: int = 256,
        packing: Literal["concat", "documents"] = "concat",
        batch_size: int = 16,
        micro_batch_size: int | None = None,
        validation_fraction: float = 0.1,
        num_workers: int = 0,
        cache_dir: str = "~/.cache/txtrain",
    ) -> None:
        super().__init__()
        sizes = {"seq_len": seq_len, "batch_size": batch_size, "micro_batch_size": micro_batch_size}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise UserError(f"data.{name}={size} is too small: set data.{name}=1 or more")
        if num_workers < 0:
            raise UserError(f"data.num_workers={num_workers} is negative: set data.num_workers=0 or more")
        if not 0 < validation_fraction < 1:
            raise UserError(
                f"data.validation_fraction={validation_fraction} is not between 0 and 1: "
                "set data.validation_fraction=0.1"
            )
        if packing not in ("concat", "documents"):
            raise UserError(f"data.packing={packing} is unknown: set data.packing=concat or data.packing=documents")
        self.tokenizer = tokenizer
        self.seed = seed
        self.seq_len = seq_len
        self.packing: Literal["concat", "documents"] = packing
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.validation_fraction = validation_fraction
        self.num_workers = num_workers
        self.cache_dir = Path(cache_dir).expanduser().absolute()
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
        return self.tokenizer.encode(text) if text else self._first_validation()["tokens"][0, :PROMPT_TOKENS].tolist()

    @property
    def end_tokens(self) -> frozenset[int]:
        """Any of these ends what the model writes."""
        return frozenset({self.tokenizer.end_of_text})

    def details(self) -> dict[str, str]:
        """What else is to be told of the data before training, by name."""
        return {}

    def fingerprint(self) -> str:
        """The name of the tokens: another one for another text, tokenizer or split."""
        return cache.fingerprint(
            source=self.identity(), tokenizer=self.tokenizer.fingerprint(), validation_fraction=self.validation_fraction
        )

    def hold_out_all(self) -> None:
        """Leave nothing to train on: all is for evaluation. Before `tokenize`."""
        self.validation_fraction = 1.0

    def tokenize(self) -> None:
        """Make or find the tokens; safe to call from any number of processes at once."""
        self.open(cache.entry(self.cache_dir, self.fingerprint(), self._write))

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
        counts = cache.read_counts(folder)
        self.dtype = counts.dtype
        self.train_tokens = counts.train_tokens
        self.validation_tokens = counts.validation_tokens
        self.validation_bytes = counts.validation_bytes

    def _write(self, folder: Path) -> None:
        apart = self.validation_documents()
        split = Split.of(self.documents(), fraction=0.0 if apart is not None else self.validation_fraction)
        if not split.lengths.sum():
            raise UserError(f"{self._named()} holds no text: give some")
        self.tokenizer.fit(split.sample(self.documents(), self.tokenizer.sample_characters))
        train = split.texts(self.documents(), validation=False)
        if apart is None:
            cache.write(folder, self.tokenizer, train, split.texts(self.documents(), validation=True))
        else:
            cache.write(folder, self.tokenizer, train, (text for _, text in apart))

    def _named(self) -> str:
        """The source in the words of the command line."""
        return "the data"

    def micro(self, devices: int) -> int:
        """Windows per device and forward pass."""
        share = -(-self.batch_size // devices)
        return min(self.micro_batch_size or share, share)

    def accumulation(self, devices: int) -> int:
        """Forward passes per device and optimizer step."""
        return -(-self.batch_size // (self.micro(devices) * devices))

    def train_dataloader(self) -> StepLoader:
        trainer = self._trainer()
        loader = StepLoader(
            self.windows("train"),
            batch_size=self.batch_size,
            micro=self.micro(trainer.world_size),
            accumulation=self.accumulation(trainer.world_size),
            seed=self.seed,
            **self._placement(),
        )
        loader.on_resume = self._align
        return loader

    def val_dataloader(self) -> EvaluationLoader:
        micro = self.micro(self._trainer().world_size)
        return EvaluationLoader(
            self.windows("validation"), micro=micro, batch_size=self.batch_size, **self._placement()
        )

    def windows(self, split: Literal["train", "validation"]) -> Windows | RowWindows:
        """The packed windows of a split."""
        return Windows(
            path=self.folder / f"{split}.bin",
            dtype=self.dtype,
            seq_len=self.seq_len,
            packing=self.packing,
            end_of_text=self.tokenizer.end_of_text,
        )

    def _first_validation(self) -> dict[str, Tensor]:
        """The window that validation begins with, on any number of ranks."""
        windows = self.windows("validation")
        return windows.batch(permute(np.zeros(1, dtype=np.int64), size=len(windows), seed=0, epoch=0))

    def _placement(self) -> dict[str, Any]:
        trainer = self._trainer()
        return {
            "rank": trainer.global_rank,
            "ranks": trainer.world_size,
            "num_workers": self.num_workers,
            "pin_memory": trainer.strategy.root_device.type == "cuda",
        }

    def _trainer(self) -> Any:
        assert self.trainer is not None, "loaders are made for a trainer: their shares depend on its devices"
        return self.trainer

    def _align(self, batch: int) -> None:
        """On resume, make Lightning's counts of micro-batches, of this epoch and of all, those of this accumulation.

        They differ where the devices or the micro-batch have changed since, or where the run was saved within a step.
        """
        trainer = self._trainer()
        progress = trainer.fit_loop.epoch_loop.batch_progress
        total = trainer.global_step * trainer.accumulate_grad_batches
        for counts, processed in ((progress.current, batch), (progress.total, total)):
            shift = processed - counts.processed
            for name in ("ready", "started", "processed", "completed"):
                setattr(counts, name, getattr(counts, name) + shift)
