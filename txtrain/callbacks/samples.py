"""What the model writes, as it learns."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import nn

from txtrain.callbacks.clock import Clock
from txtrain.generate import sample
from txtrain.logger import TensorBoard, WandB
from txtrain.printable import one_line

PATIENCE = 5  # seconds that a sample may take with nothing said before

log = logging.getLogger(__name__)


class Samples(Callback):
    """A continuation of the same prompt with the same random numbers, after each validation; of chats an answer, of
    pairs a translation, and of other tasks what is right of a few samples and what the model says of them.

    Every rank runs the model, since a sharded one works only together; the generators of training are not touched.

    Args:
        clock: stopped while sampling.
        prompt: to continue, for data=chat to answer, or to translate; None takes how the validation set begins.
        length: most tokens to write; 0 writes none.
        temperature: 0 takes the likeliest token each time.
        top_k: draw among this many likeliest tokens; None among all.
        before: also before the first step, to compare with.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        prompt: str | None = None,
        length: int = 64,
        temperature: float = 0.8,
        top_k: int | None = 50,
        before: bool = False,
    ) -> None:
        if length < 0:
            raise ValueError(f"samples.length is {length}: give a number of tokens, or samples.length=0 for none")
        if temperature < 0:
            raise ValueError(f"samples.temperature is {temperature}: give 0 or more, such as samples.temperature=0.8")
        if 0 < temperature < 1e-4 or temperature == math.inf:
            raise ValueError(
                f"samples.temperature is {temperature}: give 0 for the likeliest token, or 0.0001 or more, such as "
                "samples.temperature=0.8"
            )
        if top_k is not None and top_k < 1:
            raise ValueError(f"samples.top_k is {top_k}: give 1 or more, or samples.top_k=null for all tokens")
        self.clock, self.prompt, self.length, self.temperature, self.top_k = clock, prompt, length, temperature, top_k
        self.before = before
        self.rows: list[list[Any]] = []
        self.between = ""

    @property
    def text(self) -> str | None:
        """The latest sample, prompt and all."""
        return self.between.join(self.rows[-1][1:]) if self.rows else None

    @property
    def text_before(self) -> str | None:
        """The sample of the model before its first step, if there is one."""
        return self.between.join(self.rows[0][1:]) if self.rows and self.rows[0][0] == 0 else None

    def on_train_start(self, trainer: Any, task: Any) -> None:
        self.between = task.between
        if self.before and not trainer.global_step:
            self._write(trainer, task)

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        if trainer.global_step and not trainer.sanity_checking:  # before the first step only if asked for
            self._write(trainer, task)

    def _write(self, trainer: Any, task: Any) -> None:
        if self.length == 0:
            return
        with self.clock.stopped(), evaluating(task), trainer.precision_plugin.forward_context():
            if task.writes_text:
                written = self._continue(task.data, task)
            else:
                written = task.write_sample(self.prompt)
        self.rows.append([trainer.global_step, *written])
        if trainer.is_global_zero:
            self._report(trainer)

    def _continue(self, data: Any, task: Any) -> tuple[str, str]:
        """A prompt, and what the model writes after it."""
        prompt = data.prompt(self.prompt)
        drawn = sample(
            task.model,
            prompt,
            length=self.length,
            max_len=task.model.max_len,
            temperature=self.temperature,
            top_k=self.top_k,
            end_tokens=data.end_tokens,
            generator=torch.Generator().manual_seed(0),
        )
        return data.shown_prompt(prompt), data.tokenizer.decode(list(self._telling(drawn)))

    def _telling(self, drawn: Iterator[int]) -> Iterator[int]:
        """The same tokens; says what is being done once it is clear that it takes a while."""
        told, since = False, time.monotonic()
        for number, token in enumerate(drawn, start=1):
            seconds = time.monotonic() - since
            # The first token takes longer than others: the prompt is read.
            if not told and (seconds if number == 1 else seconds / number * self.length) > PATIENCE:
                told = True
                log.info("writing a sample of up to %d tokens", self.length)
            yield token

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def _report(self, trainer: Trainer) -> None:
        step, prompt, text = self.rows[-1]
        log.info("sample at step %d  %s%s%s", step, one_line(prompt), self.between or "|", one_line(text))
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
