"""AST, the Audio Spectrogram Transformer (https://arxiv.org/abs/2104.01778)."""

from dataclasses import dataclass
from typing import Any

from txtrain.errors import UserError
from txtrain.interop.axes import Flat
from txtrain.interop.common import ACTIVATIONS, SIZES, Architecture, NarrowHeads
from txtrain.interop.families.vit import ENCODER, body, both, labels_of_head
from txtrain.interop.family import Always, Config, Family, Field, Part, look_up
from txtrain.interop.keys import Extra, Keys, Nullable
from txtrain.interop.names import Rule
from txtrain.model.grid import Grid
from txtrain.model.spectrogram import AudioEncoder

PREFIX = "audio_spectrogram_transformer."


@dataclass(frozen=True)
class Classifier(Architecture):
    """The head, whose LayerNorm has the epsilon of all others."""

    def read(self, config: Config) -> Flat:
        flat = super().read(config)
        if flat["head"] == "none":
            return flat
        return flat | Field("head.norm_eps", "layer_norm_eps").read(config)


class Stride(Part):
    """From one patch to the next, over filters and over frames."""

    keys = ("frequency_stride", "time_stride")

    def read(self, config: Config) -> Flat:
        return {"embedding.stride": [look_up(config, key, 10) for key in self.keys]}

    def write(self, flat: Flat) -> dict[str, Any]:
        return dict(zip(self.keys, both(flat.get("embedding.stride", 10)), strict=True))


def square(size: Any) -> list[int]:
    """Filters and frames of a patch, which `transformers` can only have as one number."""
    if not isinstance(size, int):
        raise UserError(f"its patch_size is {size}, and AST's patches are square: one number")
    return [size, size]


class AudioSpectrogramTransformer(Family):
    """An encoder of overlapping patches of a spectrogram, with a class token and a distillation token."""

    model_types = ("audio-spectrogram-transformer",)
    architecture = "ASTForAudioClassification"
    model_class = AudioEncoder
    reads = "sound"
    prefix = PREFIX
    ignored = r"(?!)"
    max_len = None
    keys = Keys(
        {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "patch_size": Nullable(object, 16),
            "qkv_bias": True,
            "head_dim": Extra(int),
            "frequency_stride": 10,
            "time_stride": 10,
            "max_length": 1024,
            "num_mel_bins": 128,
        },
    )
    parts = (
        Always(ENCODER | {"embedding": "spectrogram_patches", "embedding.distillation_token": True}),
        *SIZES,
        NarrowHeads(),
        Field("norm.eps", "layer_norm_eps"),
        Field("ffn.activation", "hidden_act", values=ACTIVATIONS),
        Field("attention.bias", "qkv_bias", values={True: True, False: "output"}),
        Field("embedding.patch_size", "patch_size", to_ours=square, to_theirs=lambda size: both(size)[0]),
        Stride(),
        Classifier({"ASTModel": {"head": "none"}, "ASTForAudioClassification": {"head": "token_mean"}}),
    )
    rules = (*body(PREFIX), Rule("head.norm", "classifier.layernorm"), Rule("head.linear", "classifier.dense"))

    def sizes(self, config: Config) -> dict[str, int]:
        filters, frames = look_up(config, "num_mel_bins", 128), look_up(config, "max_length", 1024)
        return {"num_mels": int(filters), "max_frames": int(frames)}

    def longest(self, config: Config) -> int:
        patch, strides = look_up(config, "patch_size", 16), Stride().read(config)["embedding.stride"]
        sizes = zip(self.sizes(config).values(), strides, strict=True)
        return Grid(size=tuple((whole - patch) // step + 1 for whole, step in sizes), prefix=2).length

    def labels(self, config: Config) -> tuple[str, ...]:
        return labels_of_head(config)
