"""Sampling from a decoder that is being trained: compiled, sharded, with adapters."""

from collections.abc import Iterator, Set

import torch
from torch import Tensor, nn

from txtrain.model import Cache, Decoder


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt: list[int],
    *,
    length: int,
    max_len: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    end_tokens: Set[int] = frozenset(),
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Up to `length` tokens after the prompt, each as soon as it is drawn; it ends where the text does, or where the
    model has diverged and gives no finite logits.

    Each token is read once while all of them fit into `max_len`. After that the model reads the newest `max_len` tokens
    anew for each. A sharded model makes the same calls on every rank.

    Args:
        model: tokens (B, T) → logits (B, T, V), causal, in evaluation mode.
        prompt: ids of the tokens to begin with, at least one.
        length: most tokens to draw.
        max_len: most tokens that the model reads together.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: draw among this many likeliest tokens.
        end_tokens: any of these ends the text, and is no part of it.
        generator: on the CPU, where tokens are drawn.
    """
    tokens, cache = list(prompt), None
    if isinstance(model, Decoder) and len(prompt) <= max_len:
        cache = model.new_cache(batch=1, capacity=min(len(prompt) + length, max_len))
    for _ in range(length):
        if len(tokens) > max_len:
            cache = None
        logits = _next_logits(model, tokens, max_len=max_len, cache=cache).float().cpu()
        if not logits.isfinite().all():
            return
        token = draw(logits, temperature=temperature, top_k=top_k, generator=generator)
        if token in end_tokens:
            return
        tokens.append(token)
        yield token


def _next_logits(model: nn.Module, tokens: list[int], *, max_len: int, cache: Cache | None) -> Tensor:
    device = next(model.parameters()).device
    if cache is not None:
        return model(torch.tensor([tokens[cache.length :]], device=device), cache=cache)[0, -1]
    window = tokens[-max_len:]
    # Filled up after the last one, where no token looks: a compiled model then has one length.
    return model(torch.tensor([window + [0] * (max_len - len(window))], device=device))[0, len(window) - 1]


def draw(logits: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator | None) -> int:
    """One token from logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
