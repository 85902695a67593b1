"""What many families share: sizes, activations, rotary positions, windows, and Llama's names."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from txtrain.errors import UserError
from txtrain.interop.axes import Flat, differences
from txtrain.interop.family import Config, Family, Field, Part, look_up
from txtrain.interop.keys import Extra, Nullable
from txtrain.interop.names import Rule, in_layers
from txtrain.model import EncoderWithHead

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")

ROPE_KEYS: dict[str, Any] = {
    "rope_parameters": Nullable(dict),
    "rope_scaling": Extra(dict),
    "rope_theta": Extra(float),
    "partial_rotary_factor": Extra(float),
}

SIZES: tuple[Part, ...] = (
    Field("model.dim", "hidden_size"),
    Field("model.num_layers", "num_hidden_layers"),
    Field("model.num_heads", "num_attention_heads"),
    Field("model.ffn_dim", "intermediate_size"),
)

LLAMA_RULES: tuple[Rule, ...] = (
    Rule("embedding.tokens", "model.embed_tokens"),
    Rule("stack.norm.final", "model.norm"),
    Rule("head.linear", "lm_head"),
    *in_layers(
        "stack.blocks.{layer}",
        "model.layers.{layer}",
        {
            "attention.q_proj": "self_attn.q_proj",
            "attention.k_proj": "self_attn.k_proj",
            "attention.v_proj": "self_attn.v_proj",
            "attention.o_proj": "self_attn.o_proj",
            "attention.q_norm": "self_attn.q_norm",
            "attention.k_norm": "self_attn.k_norm",
            "ffn.gate_proj": "mlp.gate_proj",
            "ffn.up_proj": "mlp.up_proj",
            "ffn.down_proj": "mlp.down_proj",
        },
    ),
)


def label_names(config: Config) -> tuple[str, ...]:
    """Names of the labels, in the order of their numbers; a file that has none means LABEL_0 and LABEL_1."""
    names = config.get("id2label") or {number: f"LABEL_{number}" for number in range(config.get("num_labels") or 2)}
    return tuple(str(names[number]) for number in sorted(names, key=int))


class TextEncoder(Family):
    """An encoder of text, whose head scores tokens, labels of a text or labels of its tokens."""

    model_class = EncoderWithHead

    def labels(self, config: Config) -> tuple[str, ...]:
        labelling = (config.get("architectures") or [""])[0].endswith("Classification")
        return label_names(config) if labelling else ()


@dataclass(frozen=True)
class Architecture(Part):
    """The head: the class that the weights were saved from says which.

    Args:
        heads: what each class of `transformers` means; the first is meant if the file names none.
    """

    heads: Mapping[str, Flat]

    def read(self, config: Config) -> Flat:
        name = (config.get("architectures") or [next(iter(self.heads))])[0]
        if name not in self.heads:
            raise UserError(f"its architectures say {name}, and txtrain knows {', '.join(self.heads)}")
        return dict(self.heads[name])

    def write(self, flat: Flat) -> dict[str, Any]:
        found = [name for name, head in self.heads.items() if not differences(head, flat)]
        return {"architectures": found[:1]} if found else {}


@dataclass(frozen=True)
class Rotary(Part):
    """Rotary positions: `rope_theta` and `rope_scaling`, or `rope_parameters`, in which newer files have both.

    Args:
        theta: the key of theta.
        fraction: the key of the share that turns, if the family has one.
        default_fraction: that share if the key is missing.
    """

    theta: str = "rope_theta"
    fraction: str | None = None
    default_fraction: float = 1.0

    def read(self, config: Config) -> Flat:
        stated: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
        kind = stated.get("rope_type", stated.get("type", "default"))
        longest: Any = config.get("max_position_embeddings")
        theta: Any = stated.get("rope_theta", config.get(self.theta, 10000))
        part: Any = stated.get("partial_rotary_factor", config.get(self.fraction or "partial_rotary_factor"))
        if not theta or any(isinstance(value, dict) for value in stated.values()):
            raise UserError(f"its rotary positions are {dict(stated) or {self.theta: theta}}: one theta is needed")
        if self.fraction is None and part not in (None, 1):
            raise UserError(f"its partial_rotary_factor is {part}, and this family turns whole heads")
        flat: Flat = {
            "encoding": "rope",
            "encoding.theta": float(theta),
            "encoding.scaling": None if kind == "default" else kind,
        }
        if self.fraction:
            flat["encoding.fraction"] = self.default_fraction if part is None else float(part)
        if kind == "default":
            return flat
        if kind not in ("linear", "dynamic", "yarn", "llama3") or not stated.get("truncate", True):
            raise UserError(f"its rotary positions are scaled by {stated}, which encoding.scaling does not express")
        original = longest if kind == "dynamic" else stated.get("original_max_position_embeddings", longest)
        if not stated.get("factor") and kind != "yarn":
            raise UserError(f"its rotary positions are scaled by {stated}, without a factor")
        flat["encoding.factor"] = float(stated["factor"] if stated.get("factor") else longest / original)
        if kind != "linear":
            flat["encoding.original_len"] = original
        if kind == "yarn":
            flat["encoding.band"] = [float(stated.get("beta_slow") or 1), float(stated.get("beta_fast") or 32)]
            flat["encoding.attention_factor"] = _sharpening(stated, flat["encoding.factor"])
        if kind == "llama3":
            flat["encoding.band"] = [float(stated["low_freq_factor"]), float(stated["high_freq_factor"])]
        return flat

    def write(self, flat: Flat) -> dict[str, Any]:
        if flat["encoding"] != "rope":
            return {}
        scaling = flat.get("encoding.scaling")
        written = {self.theta: flat.get("encoding.theta"), "rope_scaling": None}
        if self.fraction:
            written[self.fraction] = flat.get("encoding.fraction")
        if scaling is None:
            return written
        stated = {"rope_type": scaling, "factor": flat["encoding.factor"]}
        if scaling == "dynamic":
            written["max_position_embeddings"] = flat["encoding.original_len"]
        elif scaling != "linear":
            stated["original_max_position_embeddings"] = flat["encoding.original_len"]
        if scaling == "yarn":
            slow, fast = flat["encoding.band"]
            stated |= {"beta_slow": slow, "beta_fast": fast, "attention_factor": flat["encoding.attention_factor"]}
        if scaling == "llama3":
            stated["low_freq_factor"], stated["high_freq_factor"] = flat["encoding.band"]
        return written | {"rope_scaling": stated}


def _sharpening(stated: Mapping[str, Any], factor: float) -> float:
    """YaRN's factor on queries and keys: said, or made of two of DeepSeek's, or the paper's."""
    if stated.get("attention_factor") is not None:
        return float(stated["attention_factor"])
    growth = 0.1 * math.log(max(factor, 1.0))
    if stated.get("mscale") and stated.get("mscale_all_dim"):
        return (growth * stated["mscale"] + 1.0) / (growth * stated["mscale_all_dim"] + 1.0)
    return growth + 1.0


class NarrowHeads(Part):
    """The width of heads, which all together are as wide as the model in this family."""

    def read(self, config: Config) -> Flat:
        dim, heads = config["hidden_size"], config["num_attention_heads"]
        if config.get("head_dim") not in (None, dim // heads):
            raise UserError(f"its head_dim is {config['head_dim']}, and this family's heads are {dim // heads} wide")
        return {}

    def write(self, flat: Flat) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Windows(Part):
    """Sliding windows in some layers: `layer_types`, or what older files say of it.

    Args:
        every_other: whether layers alternate, beginning with a window, if the file does not say (Gemma 2).
        always: whether `sliding_window` counts without `use_sliding_window`.
    """

    every_other: bool = False
    always: bool = False

    def read(self, config: Config) -> Flat:
        window = look_up(config, "sliding_window")
        if not (self.every_other or self.always or config.get("use_sliding_window")):
            window = None
        layers, named = look_up(config, "num_hidden_layers"), config.get("layer_types")
        first: Any = config.get("max_window_layers", 0)
        sliding = [layer % 2 == 0 if self.every_other else layer >= first for layer in range(layers)]
        if named is None and not self.every_other and window is None:
            return {"attention.window": None}
        if named is not None:
            known = {"sliding_attention": True, "full_attention": False, "attention": False}
            if len(named) != layers or not all(kind in known for kind in named):
                raise UserError(
                    f"its layer_types are {named}, and txtrain knows {', '.join(known)}, one for each layer"
                )
            sliding = [known[kind] for kind in named]
        if not any(sliding):
            return {"attention.window": None}
        if window is None:
            raise UserError("its layer_types have sliding_attention, and no sliding_window says of what size")
        return {"attention.window": window if all(sliding) else [window if on else None for on in sliding]}

    def write(self, flat: Flat) -> dict[str, Any]:
        window, layers = flat["attention.window"], flat["model.num_layers"]
        pattern = window if isinstance(window, list) else [window] * layers
        sizes = {size for size in pattern if size is not None}
        return {
            # transformers makes Gemma 2's mask of a window also if no layer uses it.
            "sliding_window": max(sizes, default=4096 if self.every_other else None),
            "use_sliding_window": bool(sizes),
            "layer_types": ["full_attention" if size is None else "sliding_attention" for size in pattern],
        }
