"""`init_from`: start from the trained weights of an earlier run, as the same model."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from txtrain.config import saved_config
from txtrain.errors import UserError
from txtrain.model.lora import merge
from txtrain.saving import BEST, WEIGHT, Reader, check_checkpoint, find_checkpoint

# What makes the model that the weights belong to.
MODEL_GROUPS = ("model", "embedding", "head", "encoding", "norm", "attention", "ffn")
ADAPTER_NAMES = ("lora_A", "lora_B", "lora_magnitude")


def same_model(composed: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """The composed config with the model and tokenizer of the run that `init_from` names, under what the user typed."""
    run = Path(composed.init_from)
    if not (run / "config.yaml").is_file():
        raise UserError(f"init_from={run} is no run directory (it has no config.yaml): type init_from=runs/NAME/RUN")
    saved, result = saved_config(run), composed.copy()
    for group in MODEL_GROUPS:
        result[group] = saved[group]
    if result.encoding.get("max_len", 0) is None:
        result.encoding.max_len = saved.data.seq_len  # the table was made for it
    pretrained = {
        "_target_": "txtrain.data.tokenizer.Pretrained",
        "path": str(run / "tokenizer.json"),
        "end_of_text": None,
    }
    result.tokenizer = OmegaConf.create(pretrained)
    for key in (override.partition("=")[0].lstrip("+~") for override in overrides):
        if key.partition(".")[0] in (*MODEL_GROUPS, "tokenizer"):
            OmegaConf.update(result, key, OmegaConf.select(composed, key), merge=False, force_add=True)
    return result


def trained_weights(build_model: Callable[[], nn.Module], run: Path) -> dict[str, Tensor]:
    """The best weights of a run for the model that `build_model` makes; adapters of that run are merged into them.

    Raises:
        UserError: the run has no checkpoint, or its weights are those of another model.
    """
    model = build_model()
    instantiate(saved_config(run).lora, _convert_="all").apply(model)
    fill(model, read_weights(run), run)
    merge(model)
    return {name: value for name, value in model.state_dict().items() if not name.endswith(ADAPTER_NAMES)}


def with_weights(build_model: Callable[[], nn.Module], weights: dict[str, Tensor]) -> nn.Module:
    """The model that `build_model` makes, with these weights."""
    model = build_model()
    model.load_state_dict(weights)
    return model


def fill(model: nn.Module, weights: Mapping[str, Tensor], run: Path) -> None:
    """Puts whole tensors into a model's parameters, tied ones once."""
    parameters = dict(model.named_parameters())
    wrong = {name for name in parameters.keys() & weights if parameters[name].shape != weights[name].shape}
    if wrong := wrong | (parameters.keys() ^ weights.keys()):
        name = min(wrong)
        shapes = " instead of ".join(str(tuple(of[name].shape)) for of in (weights, parameters) if name in of)
        raise UserError(
            f"init_from={run} has weights of another model ({name}: {shapes}): leave out overrides of the model"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])


def read_weights(run: Path) -> dict[str, Tensor]:
    """The model's weights in the best checkpoint of a run, or in its newest, whatever strategy wrote it."""
    best = run / "checkpoints" / BEST
    path = best if best.exists() else find_checkpoint(run)
    if path is None:
        raise UserError(f"init_from={run} has no checkpoint: name a run that has trained")
    check_checkpoint(path)
    reader = Reader(path)
    return {name.removeprefix(WEIGHT): reader[name] for name in reader.names(WEIGHT)}
