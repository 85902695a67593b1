"""Config nodes of the axes, written out flat: `{"norm": "pre", "norm.eps": 1e-5, ...}`.

A key that is a group names its option. That is what families are described by, and how models are compared.
"""

import math
from collections.abc import Mapping
from pkgutil import resolve_name
from typing import Any

from txtrain.config import NODE_KEYS
from txtrain.model.ffn import inner_width
from txtrain.model.patches import pair, patch_of
from txtrain.naming import names_option, nearest_option, option_files
from txtrain.schema import arguments, as_typed

Flat = dict[str, Any]
Nodes = dict[str, dict[str, Any]]

GROUPS = ("model", "embedding", "head", "encoding", "norm", "attention", "ffn")
# They change what is trained, not what is computed of a trained model.
UNCOMPARED = ("model.dropout", "model.drop_path", "model.vocab_size", "model.max_len", "head.dropout")


def to_nodes(flat: Flat) -> Nodes:
    """Whole config nodes: each option's file with the values that are said of it."""
    nodes = {group: dict(_node(group, flat[group])) for group in GROUPS}
    for path, value in flat.items():
        group, _, key = path.partition(".")
        if key:
            nodes[group][key] = value
    return nodes


def to_flat(nodes: Mapping[str, Mapping[str, Any]]) -> Flat:
    """All that nodes say and leave to defaults, sizes worked out, so that equal models are equal here."""
    flat: Flat = {}
    for group in GROUPS:
        target = nodes[group]["_target_"]
        flat[group] = _option(group, target)
        defaults = {name: parameter.default for name, parameter in arguments(resolve_name(target))[0].items()}
        values = {name: value for name, value in defaults.items() if isinstance(value, bool | int | float | str | None)}
        values |= {key: value for key, value in nodes[group].items() if key not in NODE_KEYS}
        flat |= {f"{group}.{key}": value for key, value in values.items()}
    flat |= _worked_out(flat, gated="Gated" in nodes["ffn"]["_target_"])
    return {key: value for key, value in flat.items() if key not in UNCOMPARED}


def differences(wanted: Flat, got: Flat) -> dict[str, Any]:
    """What of the first the second has otherwise."""
    return {key: value for key, value in wanted.items() if not _equal(value, got.get(key))}


def typed(flat: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> str:
    """Values of these nodes as one types them: `norm=pre norm.eps=1e-05`, and `ffn=relu` for its activation."""
    words: dict[str, None] = {}
    for path, value in flat.items():
        group, _, key = path.partition(".")
        if not key or names_option(group, nodes[group], key):
            words[f"{group}={nearest_option(group, nodes[group])[0]}"] = None
        elif group not in flat:  # else the option itself is named, which has the key
            words[f"{path}={as_typed(value)}"] = None
    return " ".join(words)


def _worked_out(flat: Flat, *, gated: bool) -> Flat:
    image = flat.get("embedding.image_size")
    dim, heads, layers = flat["model.dim"], flat["model.num_heads"], flat["model.num_layers"]
    head_dim = flat["model.head_dim"] or dim // heads
    found = {
        "model.num_decoder_layers": flat["model.num_decoder_layers"] or layers,
        "model.num_kv_heads": flat["model.num_kv_heads"] or heads,
        "model.head_dim": head_dim,
        "model.ffn_dim": flat["model.ffn_dim"] or inner_width(dim, gated=gated),
        "attention.scale": flat["attention.scale"] or head_dim**-0.5,
    }
    if "embedding.scale" in flat:
        found["embedding.scale"] = bool(flat["embedding.scale"])
    if image is not None:
        found["embedding.image_size"] = list(pair("image_size", image))
        found["embedding.patch_size"] = list(patch_of(image, flat["embedding.patch_size"]))
    if "embedding.stride" in flat:  # of spectrograms
        sizes = {key: flat[f"embedding.{key}"] for key in ("patch_size", "stride")}
        found |= {f"embedding.{key}": list(pair(key, size)) for key, size in sizes.items() if size is not None}
    window = flat["attention.window"]
    if isinstance(window, list):
        pattern = [window[layer % len(window)] for layer in range(layers)]
        found["attention.window"] = pattern[0] if len(set(pattern)) == 1 else pattern
    scaling = flat.get("encoding.scaling")
    if scaling in ("yarn", "llama3"):
        found["encoding.band"] = flat["encoding.band"] or ([1.0, 32.0] if scaling == "yarn" else [1.0, 4.0])
    if scaling == "yarn":
        default = 0.1 * math.log(flat["encoding.factor"]) + 1.0
        found["encoding.attention_factor"] = flat["encoding.attention_factor"] or default
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def _node(group: str, option: str) -> dict[str, Any]:
    return option_files(group)[option]


def _option(group: str, target: str) -> str:
    """The first option with that class: those that share one differ in values only."""
    return next((name for name, node in option_files(group).items() if node["_target_"] == target), target)
