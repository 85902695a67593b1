"""Sampling from a decoder, by running it anew for each token."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def sample(
    model: nn.Module,
    prompt: list[int],
    *,
    length: int,
    max_len: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    generator: torch.Generator | None = None,
) -> list[int]:
    """The prompt and `length` tokens after it, fewer if the model has diverged and gives no finite logits.

    The model always reads (1, max_len) tokens, filled up after the last one, where no token looks: a compiled model
    meets one shape, and a sharded one makes the same calls on every rank. Beyond `max_len` it reads the newest tokens.

    Args:
        model: tokens (B, T) → logits (B, T, V), causal, in evaluation mode.
        prompt: ids of the tokens to begin with, at least one.
        length: tokens to draw.
        max_len: longest sequence in training.
        temperature: logits are divided by it; 0 takes the likeliest token.
        top_k: draw among this many likeliest tokens.
        generator: on the CPU, where tokens are drawn.
    """
    device = next(model.parameters()).device
    tokens = list(prompt)
    for _ in range(length):
        window = tokens[-max_len:]
        padded = torch.tensor([window + [0] * (max_len - len(window))], device=device)
        logits = model(padded)[0, len(window) - 1].float().cpu()
        if not logits.isfinite().all():
            break
        tokens.append(draw(logits, temperature=temperature, top_k=top_k, generator=generator))
    return tokens


def draw(logits: Tensor, *, temperature: float, top_k: int | None, generator: torch.Generator | None) -> int:
    """One token from logits (V,)."""
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -torch.inf)
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
