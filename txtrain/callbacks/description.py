"""A run in words, printed before its first step and by a dry run."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
import yaml
from torch import nn

from txtrain.config import config_directory, options
from txtrain.durations import as_typed, max_seconds
from txtrain.interop.choice import EXPORTED, describe_export, merged_axes
from txtrain.model.explain import explain_attention
from txtrain.model.lora import adapters, parameter_counts
from txtrain.optim import is_small
from txtrain.printable import short
from txtrain.run_model import class_of
from txtrain.strategy import OneDevice

AXES = ("encoding", "norm", "attention", "ffn", "optimizer", "schedule")
SHOWN = 4  # keys of an option that differ from its file


def describe_run(
    *, config: Mapping[str, Any], trainer: Any, data: Any, model: nn.Module, steps: float, in_epoch: float, device: str
) -> dict[str, str]:
    """Lines by name: the model, its axes in the words that one types, data, batch, steps, kernels and devices.

    Args:
        config: the run's, plain.
        trainer: Lightning's, with its strategy.
        data: prepared.
        model: with its adapters, on any device.
        steps: optimizer steps in all.
        in_epoch: optimizer steps in an epoch.
        device: type of the device that the model runs on, such as cuda.
    """
    devices, precision = trainer.num_devices * trainer.num_nodes, trainer.precision
    lines = {
        "model": _model(config["model"], model),
        "axes": ", ".join(f"{axis} {option_name(axis, config[axis])}" for axis in AXES if axis in config),
        **_adapters(config, model),
        **_extras(config),
        **({"export": _export(config, data, model)} if "task" in config else {}),
        "data": data.description(),
        **data.planned(steps),
        **data.details(),
        "batch": f"{data.batch_told(devices)} × {devices} device{'s' * (devices > 1)}"
        f" × accumulation {data.accumulation(devices)}",
        "steps": _steps(steps, in_epoch, max_seconds((config.get("trainer") or {}).get("max_time"))),
        "attention": explain_attention(
            model,
            device,
            compute_dtype(precision),
            length=data.sizes().get("max_len"),
            documents=data.documents_apart,
            padding=data.padded,
        ),
        "device": f"{device}, precision {precision}, strategy {_strategy(config, trainer.strategy)}",
    }
    return lines


def _export(config: Mapping[str, Any], data: Any, model: nn.Module) -> str:
    told = describe_export(
        class_of(config["task"], "task").model_class, merged_axes(config, model), data.sizes().get("max_len")
    )[1]
    return f"{told}, into {EXPORTED} of the run at its end" if config.get("export") else told


def describe_memory(model: nn.Module, config: Mapping[str, Any], precision: str) -> str:
    """The memory of weights, gradients and AdamW's or another optimizer's state of one whole model, before sharding.

    Args:
        model: on any device.
        config: the run's, plain.
        precision: Lightning's name for it.
    """
    total, trainable = parameter_counts(model)
    width = 2 if precision.endswith("16-true") else 8 if precision.startswith("64") else 4
    moments = 2 if "adamw" in str(config["optimizer"]["_target_"]).lower() else 1
    masters = sum(p.numel() for p in model.parameters() if p.requires_grad and is_small(p)) if width == 2 else 0
    state = (trainable * moments + masters) * max(width, 4)
    parts = {"weights": total * width, "gradients": trainable * width, "optimizer": state}
    listed = ", ".join(f"{name} {mebibytes(size)}" for name, size in parts.items())
    return f"{mebibytes(sum(parts.values()))} before activations ({listed}), less where the strategy shards"


def mebibytes(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB" if size < 100 * 2**20 else f"{size / 2**20:,.0f} MiB"


def _steps(steps: float, in_epoch: float, seconds: float | None) -> str:
    """What ends training."""
    in_time = f"as many as {as_typed(seconds)} are enough for" if seconds else ""
    if steps == float("inf"):
        return in_time or "no end"
    return f"{steps:.0f} ({steps / in_epoch:.2f} epochs)" + (f", or {in_time}" if in_time else "")


def compute_dtype(precision: str) -> torch.dtype:
    """Of matrix products under Lightning's name for a precision, such as bf16-mixed."""
    return torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32


def option_name(group: str, node: Mapping[str, Any]) -> str:
    """The option of a group that a config node is, as one types it, with the keys that differ from its file."""
    name, changes = nearest_option(group, node)
    more = ["…"] if len(changes) > SHOWN else []
    return f"{name} ({', '.join(changes[:SHOWN] + more)})" if changes else name


def nearest_option(group: str, node: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The name of the option that a config node is, and `key=value` of each key that differs from its file.

    Several options may share a class (swiglu, geglu): the nearest by its values is meant. An option that is not in the
    config tree goes by the name of its class.
    """
    name, changes, least = str(node["_target_"]).rpartition(".")[2], list[str](), None
    for option, values in _option_files(group).items():
        if values.get("_target_") == node["_target_"]:
            found = list(_changes(values, node))
            cost = sum(1 + (old is None or new is None) for _, old, new in found)
            if least is None or cost < least:
                name, changes, least = option, [f"{key}={_as_typed(new)}" for key, _, new in found], cost
    return name, changes


@cache
def _option_files(group: str) -> dict[str, dict[str, Any]]:
    folder = config_directory() / group
    return {name: yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in options(folder.parent, group)}


def _changes(values: Mapping[str, Any], node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Keys of a node with another value than its option's file has; interpolations there may have any."""
    for key in (*values, *(key for key in node if key not in values)):
        value = values.get(key)
        new = node.get(key, value)
        old = float(value) if isinstance(value, str) and _is_number(value) else value  # YAML reads 1e-3 as text
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _changes(old, new, f"{prefix}{key}.")
        elif new not in (old, value) and not str(value).startswith("${"):
            yield f"{prefix}{key}", old, new


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _as_typed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(_as_typed(item) for item in value)}]"
    if isinstance(value, float):
        return f"{value:g}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _model(shape: Mapping[str, Any], model: nn.Module) -> str:
    total, trainable = parameter_counts(model)
    layers, decoder, heads = shape["num_layers"], shape.get("num_decoder_layers"), shape["num_heads"]
    kv = shape.get("num_kv_heads") or heads
    size = f"{layers} layers" + (f" and {decoder} in the decoder" if decoder not in (None, layers) else "")
    size += f", width {shape['dim']}, {heads} heads" + (f" ({kv} for keys and values)" if kv != heads else "")
    seen = ", bidirectional" if getattr(model, "causal", None) is False else ""
    trains = "all trainable" if total == trainable else f"{short(trainable)} trainable ({trainable / total:.1%})"
    return f"{size}{seen}; {short(total)} parameters, {trains}"


def _adapters(config: Mapping[str, Any], model: nn.Module) -> dict[str, str]:
    lora = config.get("lora") or {}
    if not lora.get("rank"):
        return {}
    targets, layers = lora["targets"], sum(1 for _ in adapters(model))
    named = ", ".join(targets) if isinstance(targets, list) else targets
    kind = "" if lora["variant"] == "lora" else f", {lora['variant']}"
    init = "" if lora["init"] == "kaiming" else f", init {lora['init']}"
    base = f", base in {lora['base_dtype']}" if lora.get("base_dtype") else ""
    merged = f", merged every {lora['merge_every']} steps" if lora.get("merge_every") else ""
    text = f"rank {lora['rank']}, alpha {lora['alpha']:g}{kind}{init}{base}{merged}; targets {named}: {layers} layers"
    return {"lora": text}


def _extras(config: Mapping[str, Any]) -> dict[str, str]:
    """Techniques that are off by default, where they are on."""
    lines = {}
    if (config.get("ema") or {}).get("decay"):
        lines["ema"] = f"decay {config['ema']['decay']:g}: the average is validated, and saved as the model"
    if config.get("callbacks"):
        lines["callbacks"] = ", ".join(config["callbacks"])
    data = config.get("data") or {}
    changes = {**(data.get("augment") or {}), **(data.get("mixing") or {})}
    used = [
        f"{key} {_as_typed(value)}"
        for key, value in changes.items()
        if value and not key.startswith("_") and not (key == "magnitude" and not changes.get("operations"))
    ]
    if used:
        lines["augmentation"] = ", ".join(used)
    return lines


def _strategy(config: Mapping[str, Any], strategy: Any) -> str:
    typed = nearest_option("strategy", config["strategy"])[0] if "strategy" in config else "auto"
    chosen = "one device" if isinstance(strategy, OneDevice) else getattr(strategy, "option", type(strategy).__name__)
    return f"auto ({chosen})" if typed == "auto" else typed
