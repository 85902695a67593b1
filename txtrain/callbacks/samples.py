"""What the model writes, as it learns."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import nn

from txtrain.callbacks.clock import Clock
from txtrain.generate import sample
from txtrain.logger import TensorBoard, WandB

log = logging.getLogger(__name__)

PROMPT_TOKENS = 16  # taken from the validation set when no prompt is given


class Samples(Callback):
    """A continuation of the same prompt with the same random numbers, after each validation.

    Every rank runs the model, since a sharded one works only together; the generators of training are not touched.

    Args:
        clock: stopped while sampling.
        prompt: to continue; None takes the first tokens of the validation set.
        length: tokens to write; 0 writes none.
        temperature: 0 takes the likeliest token each time.
        top_k: draw among this many likeliest tokens; None among all.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        prompt: str | None = None,
        length: int = 64,
        temperature: float = 0.8,
        top_k: int | None = 50,
    ) -> None:
        if length < 0:
            raise ValueError(f"samples.length is {length}: give a number of tokens, or samples.length=0 for none")
        if temperature < 0:
            raise ValueError(f"samples.temperature is {temperature}: give 0 or more, such as samples.temperature=0.8")
        if top_k is not None and top_k < 1:
            raise ValueError(f"samples.top_k is {top_k}: give 1 or more, or samples.top_k=null for all tokens")
        self.clock, self.prompt, self.length, self.temperature, self.top_k = clock, prompt, length, temperature, top_k
        self.rows: list[list[Any]] = []
        self._first_tokens: list[int] | None = None

    @property
    def text(self) -> str | None:
        """The latest sample, prompt and all."""
        return self.rows[-1][1] + self.rows[-1][2] if self.rows else None

    def on_validation_batch_start(
        self, trainer: Any, task: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0 and self._first_tokens is None:
            if self.prompt:
                tokens = trainer.datamodule.tokenizer.encode_batch([self.prompt])[0]
            else:
                tokens = batch["tokens"][0, :PROMPT_TOKENS].tolist()
            self._first_tokens = trainer.strategy.broadcast(tokens)

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        if trainer.sanity_checking or self.length == 0 or not self._first_tokens or not task.model_class.causal:
            return
        tokenizer, prompt = trainer.datamodule.tokenizer, self._first_tokens
        with self.clock.stopped(), evaluating(task), trainer.precision_plugin.forward_context():
            tokens = sample(
                task.model,
                prompt,
                length=self.length,
                max_len=trainer.datamodule.seq_len,
                temperature=self.temperature,
                top_k=self.top_k,
                generator=torch.Generator().manual_seed(0),
            )
        text = tokenizer.decode(_until(tokens[len(prompt) :], tokenizer.end_of_text))
        self.rows.append([trainer.global_step, tokenizer.decode(prompt), text])
        if trainer.is_global_zero:
            self._report(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def _report(self, trainer: Trainer) -> None:
        step, prompt, text = self.rows[-1]
        log.info("sample at step %d  %s|%s", step, one_line(prompt), one_line(text))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoard | WandB):
                logger.log_samples(self.rows)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and each submodule's own mode again after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens


def printable(text: str) -> str:
    """Without what would move a terminal's cursor or ring its bell: a model may write any byte."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)


def one_line(text: str) -> str:
    """For a line of a terminal."""
    return printable(text).replace("\n", "⏎")
