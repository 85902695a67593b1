"""The decoding loop: a batch of prompts is continued token by token."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from txtrain.errors import UserError
from txtrain.generate.continuation import Continuation
from txtrain.generate.sampling import Sampling


class Reader(Protocol):
    """A model that reads a batch of sequences, each token once."""

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Reads the prompts → logits (B, V) of what comes next."""

    def read(self, tokens: Tensor) -> Tensor:
        """Reads one more token of each sequence: tokens (B,) → logits (B, V) of what comes next."""

    def select(self, rows: Tensor) -> None:
        """Goes on with these rows (B',) of the batch, which may repeat."""


def started(reader: Reader, prompts: Sequence[Sequence[int]]) -> Tensor:
    """The first logits.

    Raises:
        UserError: they are no numbers.
    """
    logits = reader.start(prompts)
    if not logits.isfinite().all():
        raise UserError(
            "the model's scores are not finite: its training has diverged, or the type is too narrow (--dtype float32)"
        )
    return logits


@torch.inference_mode()
def decode(
    reader: Reader, texts: Sequence[Continuation], *, sampling: Sampling, generators: Sequence[torch.Generator] = ()
) -> Iterator[list[tuple[Continuation, str]]]:
    """Adds tokens to the texts until all have ended; tells after each step what each that has not ended got.

    Texts that have ended leave the batch.
    """
    live = list(texts)
    own = list(generators) if sampling.draws else [torch.Generator()] * len(live)
    logits = started(reader, [text.prompt for text in live])
    seen = sampling.new_seen([text.context for text in live], logits.size(-1), logits.device)
    while True:
        tokens = sampling.take(logits, seen, own)
        yield [(text, text.add(token)) for text, token in zip(live, tokens.tolist(), strict=True)]
        rows = [row for row, text in enumerate(live) if text.ended is None]
        if not rows:
            return
        if len(rows) < len(live):
            live, own = [live[row] for row in rows], [own[row] for row in rows]
            kept = torch.tensor(rows, device=tokens.device)
            tokens, seen = tokens[kept], None if seen is None else seen[kept]
            reader.select(kept)
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        logits = reader.read(tokens)
