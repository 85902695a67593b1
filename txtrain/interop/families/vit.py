"""ViT (https://arxiv.org/abs/2010.11929)."""

from collections.abc import Iterable
from typing import Any

from txtrain.interop.axes import Flat
from txtrain.interop.common import ACTIVATIONS, SIZES, Architecture, NarrowHeads, label_names
from txtrain.interop.family import Always, Config, Family, Field, Part, look_up
from txtrain.interop.keys import Extra, Keys, Nullable
from txtrain.interop.names import Rule
from txtrain.model import EncoderWithHead
from txtrain.model.grid import Grid

CLASSIFIER: Flat = {"head": "class_token", "head.pool": "first", "head.transform": None}


# Names in a layer: ours, in files, and in `transformers` from version 5 on.
LAYER = {
    "norm.norms.0": ("layernorm_before", "layernorm_before"),
    "attention.q_proj": ("attention.attention.query", "attention.q_proj"),
    "attention.k_proj": ("attention.attention.key", "attention.k_proj"),
    "attention.v_proj": ("attention.attention.value", "attention.v_proj"),
    "attention.o_proj": ("attention.output.dense", "attention.o_proj"),
    "norm.norms.1": ("layernorm_after", "layernorm_after"),
    "ffn.up_proj": ("intermediate.dense", "mlp.fc1"),
    "ffn.down_proj": ("output.dense", "mlp.fc2"),
}


def both(size: Any) -> list[int]:
    """Height and width, which a file may say as one number."""
    return [size, size] if isinstance(size, int) else list(size)


def shortest(size: Any) -> Any:
    """One number if height and width are the same."""
    height, width = both(size)
    return height if height == width else [height, width]


ENCODER: Flat = {
    "embedding.class_token": True,
    "encoding": "learned",
    "norm": "pre",
    "norm.layer": "layernorm",
    "norm.bias": True,
    "ffn": "gelu",
    "ffn.bias": True,
}
PARTS: tuple[Part, ...] = (
    Always(ENCODER | {"embedding": "patches"}),
    *SIZES,
    NarrowHeads(),
    Field("norm.eps", "layer_norm_eps"),
    Field("ffn.activation", "hidden_act", values=ACTIVATIONS),
    Field("attention.bias", "qkv_bias", values={True: True, False: "output"}),
    Field("embedding.image_size", "image_size", to_ours=both, to_theirs=shortest),
    Field("embedding.patch_size", "patch_size", to_ours=both, to_theirs=shortest),
    Field("embedding.channels", "num_channels"),
)


def labels_of_head(config: Config) -> tuple[str, ...]:
    """Names of the labels, none of a model without a head."""
    return () if (config.get("architectures") or ["Model"])[0].endswith("Model") else label_names(config)


def body(prefix: str) -> Iterable[Rule]:
    """Names of all but the head."""
    yield Rule("embedding.projection", f"{prefix}embeddings.patch_embeddings.projection", as_kernel=True)
    yield Rule("embedding.class_token", f"{prefix}embeddings.cls_token", leading=2)
    yield Rule("embedding.distillation_token", f"{prefix}embeddings.distillation_token", leading=2)
    yield Rule("stack.encoding.table.weight", f"{prefix}embeddings.position_embeddings", leading=1)
    for ours, (theirs, module) in LAYER.items():
        layer, live = f"{prefix}encoder.layer.{{layer}}", f"{prefix}layers.{{layer}}"
        yield Rule(f"stack.blocks.{{layer}}.{ours}", f"{layer}.{theirs}", module=f"{live}.{module}")
    yield Rule("stack.norm.final", f"{prefix}layernorm")


class ViT(Family):
    """An encoder of patches with learned positions and pre-norm; its class token scores the labels."""

    model_types = ("vit",)
    architecture = "ViTForImageClassification"
    model_class = EncoderWithHead
    reads = "images"
    prefix = "vit."
    ignored = r".*pooler\..*|.*mask_token"
    max_len = None
    keys = Keys(
        {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "image_size": Nullable(object, 224),
            "patch_size": Nullable(object, 16),
            "num_channels": 3,
            "qkv_bias": True,
            "head_dim": Extra(int),
        },
        neutral=frozenset({"encoder_stride", "pooler_act", "pooler_output_size"}),
    )
    parts = (
        *PARTS,
        Always({"embedding.distillation_token": False}),
        Architecture({"ViTModel": {"head": "none"}, "ViTForImageClassification": CLASSIFIER}),
    )
    rules = (*body("vit."), Rule("head.linear", "classifier"))
    prefix_tokens = 1

    def longest(self, config: Config) -> int:
        image, patch = both(look_up(config, "image_size", 224)), both(look_up(config, "patch_size", 16))
        size = tuple(whole // part for whole, part in zip(image, patch, strict=True))
        return Grid(size=size, prefix=self.prefix_tokens).length

    def labels(self, config: Config) -> tuple[str, ...]:
        return labels_of_head(config)
