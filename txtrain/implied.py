"""Values that a composed config leaves to its other options, or to the environment."""

import os
from collections.abc import Iterable

from omegaconf import DictConfig

from txtrain.trust import locate


def fill_implied(config: DictConfig) -> None:
    """Sets what is null because another option decides it; what was typed, or stands in a saved config, stays.

    `embedding.scale`: token vectors are multiplied by √dim where the encoding's paper does so.
    """
    embedding, encoding = config.get("embedding"), config.get("encoding")
    if embedding is None or encoding is None or "scale" not in embedding or embedding.scale is not None:
        return
    if "_target_" in encoding:  # else the check says what is wrong
        embedding.scale = bool(getattr(locate("encoding", encoding), "scales_embedding", False))


def fill_stated(config: DictConfig, overrides: Iterable[str]) -> None:
    """Where a run goes in W&B as the environment says, but for what was typed; the run keeps it when it goes on."""
    logger = config.get("logger")
    if logger is None or not logger.get("wandb"):
        return
    typed = {override.partition("=")[0].lstrip("+") for override in overrides}
    for key, default in (("project", config.name), ("entity", None), ("tags", [])):
        stated = os.environ.get(f"WANDB_{key.upper()}")
        if stated and f"logger.{key}" not in typed and logger[key] == default:
            logger[key] = stated.split(",") if key == "tags" else stated
