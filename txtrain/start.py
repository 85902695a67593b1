"""`init_from`: start from trained weights, of an earlier run or a Hugging Face folder, as the same model."""

from collections.abc import Callable, Iterable, Set
from functools import partial
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from txtrain.config import saved_config
from txtrain.errors import UserError
from txtrain.interop import is_folder, read_folder
from txtrain.model.lora import adapters, check_mergeable
from txtrain.saving import (
    BASE,
    BEST,
    WEIGHT,
    Reader,
    check_checkpoint,
    content_hash,
    find_checkpoint,
    read_state,
)

# What makes the model that the weights belong to.
MODEL_GROUPS = ("model", "embedding", "head", "encoding", "norm", "attention", "ffn")
ADAPTER_NAMES = ("lora_A", "lora_B", "lora_A0", "lora_B0", "lora_magnitude")


def same_model(composed: DictConfig, overrides: Iterable[str]) -> DictConfig:
    """The composed config with the model and tokenizer that `init_from` names, under what the user typed."""
    path, result = Path(composed.init_from).expanduser(), composed.copy()
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    own_tokenizer = any(key.partition(".")[0] == "tokenizer" for key in keys)
    if (path / "config.yaml").is_file():
        axes, tokenizer, reads_text = _axes_of_run(path), path / "tokenizer.json", True
    elif is_folder(path):
        imported = read_folder(path)
        axes, tokenizer = OmegaConf.create(imported.axes), imported.path
        reads_text = imported.family.reads == "tokens"
        if reads_text and not own_tokenizer and not (tokenizer / "tokenizer.json").is_file():
            raise UserError(
                f"init_from={tokenizer} has no tokenizer.json: put it there, or type tokenizer=pretrained "
                "tokenizer.path=FILE"
            )
    else:
        raise UserError(
            f"init_from={path} is no run directory (it has no config.yaml), and no Hugging Face folder (it has no "
            "config.json): type init_from=runs/NAME/RUN or init_from=FOLDER"
        )
    for group in MODEL_GROUPS:
        result[group] = axes[group]
    if reads_text:
        pretrained = {"_target_": "txtrain.data.tokenizer.Pretrained", "path": str(tokenizer), "end_of_text": None}
        result.tokenizer = OmegaConf.create(pretrained)
    if own_tokenizer:
        result.model.vocab_size = None
    for key in keys:
        if key.partition(".")[0] in (*MODEL_GROUPS, "tokenizer"):
            OmegaConf.update(result, key, OmegaConf.select(composed, key), merge=False, force_add=True)
    return result


def _axes_of_run(run: Path) -> DictConfig:
    saved = saved_config(run)
    if saved.encoding.get("max_len", 0) is None:
        saved.encoding.max_len = saved.data.seq_len  # the table was made for it
    return saved


def find_trained(run: Path) -> Path:
    """The best checkpoint of a run, or its newest, by the name that it keeps; a folder is itself."""
    run = run.expanduser()
    if is_folder(run):
        return run.absolute()
    best = run / "checkpoints" / BEST
    path = best.resolve() if best.exists() else find_checkpoint(run)
    if path is None:
        raise UserError(f"init_from={run} has no checkpoint: name a run that has trained")
    return path.absolute()


def with_trained(build_model: Callable[[], nn.Module], trained: Path) -> Callable[[], nn.Module]:
    """Makes the model of `build_model` with trained weights.

    Args:
        build_model: makes the model.
        trained: a checkpoint, or a Hugging Face folder, whose weights are read as the model is made.

    Raises:
        UserError: it is damaged, or its weights are those of another model.
    """
    if is_folder(trained):
        imported = read_folder(trained)
        imported.check(build_model)
        return partial(imported.build, build_model)
    return partial(with_weights, build_model, trained_weights(build_model, trained))


def trained_weights(build_model: Callable[[], nn.Module], checkpoint: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint for the model that `build_model` makes; its run's adapters are merged into them.

    Raises:
        UserError: the checkpoint is damaged, or its weights are those of another model.
    """
    model = adapted_model(build_model, checkpoint)
    check_mergeable(model)
    merged = {f"{name}.weight": layer.merged_weight().detach() for name, layer in adapters(model)}
    return {name: value for name, value in (model.state_dict() | merged).items() if not name.endswith(ADAPTER_NAMES)}


def adapted_model(build_model: Callable[[], nn.Module], checkpoint: Path) -> nn.Module:
    """The model that `build_model` makes, with the weights in a checkpoint and its run's adapters, not merged.

    Raises:
        UserError: as `trained_weights`.
    """
    check_checkpoint(checkpoint)
    run, base = checkpoint.parent.parent, read_state(checkpoint)["base"]
    model = with_trained(build_model, Path(base["path"]))() if base else build_model()
    instantiate(saved_config(run).lora, _convert_="all").apply(model, adapt_only=base is not None)
    frozen = {name: weight for name, weight in model.named_parameters() if not weight.requires_grad}
    if base and content_hash(frozen.items()) != base["sha256"]:
        raise UserError(f"init_from={run} has adapters of other weights than those in {base['path']}: put these back")
    own_base = [checkpoint.parent / BASE] if not base and frozen.keys() - weights_in(checkpoint) else []
    for path in own_base:
        check_checkpoint(path)
    fill(model, Reader(checkpoint, *own_base), run, frozen.keys() if base else set())
    return model


def weights_in(checkpoint: Path) -> set[str]:
    """The names of the weights that a checkpoint holds."""
    return {name.removeprefix(WEIGHT) for name in Reader(checkpoint).names(WEIGHT)}


def with_weights(build_model: Callable[[], nn.Module], weights: dict[str, Tensor]) -> nn.Module:
    """The model that `build_model` makes, with these weights."""
    model = build_model()
    model.load_state_dict(weights)
    return model


def fill(model: nn.Module, reader: Reader, run: Path, filled: Set[str]) -> None:
    """Puts whole tensors into those of a model's parameters that are not filled yet, tied ones once."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if name not in filled}
    shapes = {name.removeprefix(WEIGHT): reader.shape(name) for name in reader.names(WEIGHT)}
    expected = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            differing = f"{name} is {shapes.get(name, 'missing')} instead of {expected.get(name, 'missing')}"
            raise UserError(
                f"init_from={run} has weights of another model ({differing}): leave out overrides of the model"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(reader.learned(name))
