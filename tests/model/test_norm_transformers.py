"""Norm placements against `transformers`: its sublayers, joined by our wiring, give its model's output."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from txtrain.model import Shape, Stack
from txtrain.model.norm import NormPlacement, ParallelNorm, PostNorm, PreNorm, ReorderedNorm, SandwichNorm

VOCABULARY = 23
IDENTITY = nn.Identity()


def gpt2() -> transformers.PreTrainedModel:
    return transformers.GPT2Model(transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2))


def bert() -> transformers.PreTrainedModel:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def config_of(kind: type, **rest: Any) -> Any:
    return kind(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **rest,
    )


def gpt_neox() -> transformers.PreTrainedModel:
    return transformers.GPTNeoXModel(config_of(transformers.GPTNeoXConfig))


def gptj() -> transformers.PreTrainedModel:
    config = transformers.GPTJConfig(vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2, rotary_dim=4)
    return transformers.GPTJModel(config)


def olmo2() -> transformers.PreTrainedModel:
    return transformers.Olmo2Model(config_of(transformers.Olmo2Config, num_key_value_heads=2))


def gemma2() -> transformers.PreTrainedModel:
    return transformers.Gemma2Model(config_of(transformers.Gemma2Config, num_key_value_heads=2, head_dim=8))


class BertAttention(nn.Module):
    """BERT's modules hold residual and norm too; these two leave them out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner, self.dense = layer.attention.self, layer.attention.output.dense

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.dense(self.inner(hidden_states)[0])


class BertFeedForward(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.up, self.down = layer.intermediate, layer.output.dense

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


STACK = Stack(shape=Shape(dim=16, num_layers=3, num_heads=2), causal=True, max_len=8)

# The model, the placement, and where the model keeps its parts; the norms of a layer are in our order.
AGREEMENTS: dict[str, tuple[Callable[[], Any], Callable[..., NormPlacement], dict[str, Callable[[Any], Any]]]] = {
    "gpt2": (
        gpt2,
        partial(PreNorm, layer="layernorm", bias=True),
        {
            "layers": lambda model: model.h,
            "sublayers": lambda layer: (layer.attn, layer.mlp),
            "norms": lambda layer: (layer.ln_1, layer.ln_2),
            "final": lambda model: model.ln_f,
        },
    ),
    "bert": (
        bert,
        partial(PostNorm, layer="layernorm", bias=True, eps=1e-12),
        {
            "layers": lambda model: model.encoder.layer,
            "sublayers": lambda layer: (BertAttention(layer), BertFeedForward(layer)),
            "norms": lambda layer: (layer.attention.output.LayerNorm, layer.output.LayerNorm),
            "final": lambda model: None,
        },
    ),
    "gpt_neox": (
        gpt_neox,
        partial(ParallelNorm, layer="layernorm", bias=True, shared=False),
        {
            "layers": lambda model: model.layers,
            "sublayers": lambda layer: (layer.attention, layer.mlp),
            "norms": lambda layer: (layer.input_layernorm, layer.post_attention_layernorm),
            "final": lambda model: model.final_layer_norm,
        },
    ),
    "gptj": (
        gptj,
        partial(ParallelNorm, layer="layernorm", bias=True, shared=True),
        {
            "layers": lambda model: model.h,
            "sublayers": lambda layer: (layer.attn, layer.mlp),
            "norms": lambda layer: (layer.ln_1,),
            "final": lambda model: model.ln_f,
        },
    ),
    "olmo2": (
        olmo2,
        partial(ReorderedNorm, layer="rmsnorm", eps=1e-5),
        {
            "layers": lambda model: model.layers,
            "sublayers": lambda layer: (layer.self_attn, layer.mlp),
            "norms": lambda layer: (layer.post_attention_layernorm, layer.post_feedforward_layernorm),
            "final": lambda model: model.norm,
        },
    ),
    "gemma2": (
        gemma2,
        partial(SandwichNorm, layer="rmsnorm", eps=1e-6),
        {
            "layers": lambda model: model.layers,
            "sublayers": lambda layer: (layer.self_attn, layer.mlp),
            "norms": lambda layer: (
                layer.input_layernorm,
                layer.pre_feedforward_layernorm,
                layer.post_attention_layernorm,
                layer.post_feedforward_layernorm,
            ),
            "final": lambda model: model.norm,
        },
    ),
}


def copy_norm(ours: nn.Module, theirs: nn.Module) -> None:
    gemma = type(theirs).__name__.startswith("Gemma")  # whose weight w stands for 1 + w
    with torch.no_grad():
        ours.weight.copy_(theirs.weight + 1 if gemma else theirs.weight)
        if getattr(ours, "bias", None) is not None:
            ours.bias.copy_(theirs.bias)


def call_like(module: nn.Module, arguments: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """The module on another input, with the masks and rotary tables that its model gave it."""

    def call(x: Tensor, outer: Callable[[Tensor], Tensor] = IDENTITY) -> Tensor:
        output = module(x) if not arguments else module(hidden_states=x, **arguments)
        return outer(output[0] if isinstance(output, tuple) else output)

    return call


@pytest.mark.parametrize("name", AGREEMENTS)
def test_transformers_sublayers_in_our_wiring_give_its_output(name: str) -> None:
    make, placement, read = AGREEMENTS[name]
    torch.manual_seed(0)
    model = make().eval()
    for parameter in model.parameters():  # larger than at the start, so that branches matter
        nn.init.normal_(parameter, std=0.3)
    layers = list(read["layers"](model))
    arguments: list[dict[str, Any]] = []
    streams: list[Tensor] = []
    for layer in layers:
        attention = read["sublayers"](layer)[0]
        attention.register_forward_pre_hook(
            lambda _, args, kwargs: arguments.append({k: v for k, v in kwargs.items() if k != "hidden_states"}),
            with_kwargs=True,
        )
    layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: streams.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    tokens = torch.randint(VOCABULARY, (2, 7))
    with torch.no_grad():
        expected = model(tokens, use_cache=False).last_hidden_state

        norm = placement(stack=STACK)
        stream = norm.open(streams[0])
        for layer, given in zip(layers, list(arguments) or [{}] * len(layers), strict=True):
            wiring = norm.wiring()
            own = [part for part in wiring.modules() if isinstance(part, nn.LayerNorm | nn.RMSNorm)]
            for ours, theirs in zip(own, read["norms"](layer), strict=True):
                copy_norm(ours, theirs)
            attention, ffn = read["sublayers"](layer)
            stream = wiring(stream, (call_like(attention, given), call_like(ffn, {})))
        if (final := read["final"](model)) is not None:
            copy_norm(norm.final, final)
        ours = norm.close(stream)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
