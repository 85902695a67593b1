"""Small models to try checkpointing policies on, and what training them gives."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from txtrain.model import Decoder, Encoder, EncoderDecoder, Shape
from txtrain.model.attention import Attention
from txtrain.model.checkpointing import (
    CheckpointingPolicy,
)
from txtrain.model.embed import Embedding
from txtrain.model.encoding import T5, Alibi, Rope
from txtrain.model.ffn import FeedForward, GatedFeedForward
from txtrain.model.head import Head
from txtrain.model.lora import LoRA
from txtrain.model.norm import PreNorm, ResiDual

CONFIGS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "conf/checkpointing").glob("*.yaml"))}
VOCABULARY, B, T, LAYERS = 13, 2, 16, 4


def new_policy(option: str, **overrides: Any) -> CheckpointingPolicy:
    return instantiate(OmegaConf.merge(OmegaConf.load(CONFIGS[option]), overrides), _convert_="all")


POLICIES: dict[str, Callable[[], CheckpointingPolicy]] = {
    **{option: partial(new_policy, option) for option in CONFIGS if option != "none"},
    "selective, attention": partial(new_policy, "selective", save=["attention"]),
    "selective, softmax": partial(new_policy, "selective", save=["_softmax", "native_dropout"]),
}


def new_model(kind: type = Decoder, *, dropout: float = 0.2, lora: LoRA | None = None, **axes: Any) -> nn.Module:
    torch.manual_seed(0)
    parts = {"encoding": Rope, "norm": PreNorm, "attention": Attention, "ffn": GatedFeedForward} | axes
    model = kind(
        vocab_size=VOCABULARY,
        max_len=T,
        shape=Shape(dim=32, num_layers=LAYERS, num_heads=4, num_kv_heads=2, dropout=dropout),
        embedding=Embedding,
        **({} if kind is Encoder else {"head": Head}),
        **parts,
    )
    if lora is not None:
        lora.apply(model, adapt_only=True)
        lora.quantise(model)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at the start, which would hide the gradients of the rest
                nn.init.normal_(parameter, std=0.1)
    return model


def tokens(seed: int, length: int = T) -> Tensor:
    return torch.randint(0, VOCABULARY, (B, length), generator=torch.Generator().manual_seed(seed))


Trained = tuple[list[Tensor], dict[str, Tensor]]


def loss_of(model: nn.Module, micro_batch: int) -> Tensor:
    source = tokens(micro_batch)
    if isinstance(model, EncoderDecoder):
        padding = (torch.arange(T) < 12).expand(B, -1)
        return model(source, tokens(7, 9), padding).float().logsumexp(-1).mean()
    documents = (torch.arange(T) // 6).expand(B, -1)
    return model(source, documents=documents).float().logsumexp(-1).mean()


def train(
    model: nn.Module, *, autocast: bool = False, micro_batches: int = 2
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Losses, and gradients summed over micro-batches."""
    torch.manual_seed(1)
    losses = []
    for micro_batch in range(micro_batches):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = loss_of(model, micro_batch)
        loss.backward()
        losses.append(loss.detach())
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


MODELS: dict[str, dict[str, Any]] = {
    "rope": {},
    "window and alibi": {"encoding": Alibi, "attention": partial(Attention, window=5, qk_norm="head")},
    "learned bias": {"encoding": T5},
    "soft cap": {"attention": partial(Attention, soft_cap=5.0), "ffn": FeedForward},
    "two streams": {"norm": ResiDual},
    "encoder": {"kind": Encoder},
    "cross-attention": {"kind": EncoderDecoder, "encoding": T5},
    "frozen inputs": {"lora": LoRA(rank=2, dropout=0.2)},
    "dora": {"lora": LoRA(rank=2, variant="dora")},
    "4 bits": {"lora": LoRA(rank=2, base_dtype="nf4", dropout=0.2)},
    "two streams, cross-attention, adapters": {"kind": EncoderDecoder, "norm": ResiDual, "lora": LoRA(rank=2)},
}
