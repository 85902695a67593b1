"""A run in words, printed before its first step and by a dry run."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from txtrain.durations import as_typed, max_seconds
from txtrain.interop.choice import EXPORTED, describe_export, merged_axes
from txtrain.model.explain import explain_attention
from txtrain.model.lora import adapters, parameter_counts
from txtrain.naming import as_word, nearest_option, option_name
from txtrain.optim import is_small
from txtrain.printable import short
from txtrain.run_model import class_of
from txtrain.strategy import OneDevice

AXES = ("encoding", "norm", "attention", "ffn", "optimizer", "schedule")


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
        f"{key} {as_word(value)}"
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
