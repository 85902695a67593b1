"""Models as readers: each token is read once, and its keys and values are kept for those after it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from txtrain.generate.decode import Reader
from txtrain.model import Decoder, Encoder, EncoderDecoder

AHEAD = 4096  # most tokens to take memory for before they are there


class DecoderReader:
    """Reads prompts of different lengths side by side, padded on the left so that all end together.

    Args:
        model: in evaluation mode.
        room: tokens that will be read after the prompts, so that memory for them is taken once.
    """

    def __init__(self, model: Decoder, *, room: int) -> None:
        self.model, self.room = model, min(room, AHEAD)
        self.device = next(model.parameters()).device

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        tokens, padding = padded(prompts, device=self.device, left=True)
        self.cache = self.model.new_cache(batch=len(prompts), capacity=tokens.size(1) + self.room)
        if padding is None:
            return last_logits(self.model, tokens, cache=self.cache)
        positions = (padding.cumsum(1) - 1).clamp(min=0)
        return last_logits(self.model, tokens, positions=positions, padding=padding, cache=self.cache)

    def read(self, tokens: Tensor) -> Tensor:
        return self.model(tokens[:, None], cache=self.cache)[:, -1]

    def select(self, rows: Tensor) -> None:
        self.cache.select(rows)


class EncoderDecoderReader:
    """The encoder reads the prompts, and the decoder what is written.

    Args:
        model: in evaluation mode.
        room: tokens that will be read, so that memory for them is taken once.
        start: ids that the decoder begins with.
    """

    def __init__(self, model: EncoderDecoder, *, room: int, start: Sequence[int]) -> None:
        self.model, self.room, self.first = model, min(room, AHEAD), list(start)
        self.device = next(model.parameters()).device

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        source, padding = padded(prompts, device=self.device, left=False)
        memory = self.model.encode(source, padding)
        self.cache = self.model.new_cache(batch=len(prompts), capacity=len(self.first) + self.room)
        first = torch.tensor([self.first] * len(prompts), device=self.device)
        return self.model.decode(first, memory=memory, memory_padding=padding, cache=self.cache)[:, -1]

    def read(self, tokens: Tensor) -> Tensor:
        return self.model.decode(tokens[:, None], cache=self.cache)[:, -1]

    def select(self, rows: Tensor) -> None:
        self.cache.select(rows)


class Barring:
    """Reads as another reader does, and gives some tokens the lowest score there is.

    Args:
        reader: the other one.
        barred: ids that are never to be written.
    """

    def __init__(self, reader: Reader, *, barred: Sequence[int]) -> None:
        self.reader, self.barred = reader, list(barred)

    def start(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        return self._without(self.reader.start(prompts))

    def read(self, tokens: Tensor) -> Tensor:
        return self._without(self.reader.read(tokens))

    def select(self, rows: Tensor) -> None:
        self.reader.select(rows)

    def _without(self, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[:, self.barred] = torch.finfo(logits.dtype).min
        return logits


def new_reader(
    model: Decoder | EncoderDecoder, *, room: int, start: Sequence[int], barred: Sequence[int] = ()
) -> Reader:
    reader: Reader = (
        DecoderReader(model, room=room)
        if isinstance(model, Decoder)
        else EncoderDecoderReader(model, room=room, start=start)
    )
    return Barring(reader, barred=barred) if barred else reader


def padded(prompts: Sequence[Sequence[int]], *, device: torch.device, left: bool) -> tuple[Tensor, Tensor | None]:
    """Prompts as tokens (B, T), and which of these are real (B, T): None if all are."""
    longest = max(map(len, prompts))
    rows = [([0] * (longest - len(prompt)), list(prompt)) for prompt in prompts]
    tokens = torch.tensor([fill + prompt if left else prompt + fill for fill, prompt in rows], device=device)
    if all(len(prompt) == longest for prompt in prompts):
        return tokens, None
    lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=device)
    index = torch.arange(longest, device=device)
    return tokens, index >= longest - lengths if left else index < lengths


def last_logits(model: Decoder, tokens: Tensor, **rest: Any) -> Tensor:
    """The logits (B, V) of the last token alone: those of a whole prompt would be large, and nobody needs them."""
    hidden = Encoder.forward(model, tokens, **rest)
    logits: Tensor = model.head(hidden[:, -1:])
    return logits[:, -1]
