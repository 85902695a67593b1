"""The model of a run: how it is made, and the weights that a checkpoint has for it.

A head that scores labels starts anew where the labels are others than those of the trained model.
"""

import os
from collections.abc import Callable, Mapping, Sequence, Set
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import Tensor, nn

from txtrain.base_hash import default_dtype, frozen_hash, is_base
from txtrain.config import check, instantiate, instantiate_saved, saved_config, to_plain
from txtrain.data.labels import LABELS, read_labels
from txtrain.data.tokenizer import Pretrained
from txtrain.errors import UserError
from txtrain.interop import is_folder, read_folder
from txtrain.model import Encoder, EncoderDecoder, EncoderWithPairs
from txtrain.model.finite import is_finite
from txtrain.model.head import LABELLING
from txtrain.model.lora import adapters, check_mergeable
from txtrain.model.lora.merging import tied
from txtrain.records import RESTORE, DataRecord, read_record
from txtrain.saving import BASE, WEIGHT, Reader, check_checkpoint, read_state
from txtrain.schema import arguments
from txtrain.sizes import check_layers, made
from txtrain.trust import locate

LARGE = 2**24  # weights of a matrix whose shape is compared before it is made
HEADS = ("head", "pairs")  # parts that a model has for its task
ADAPTER_NAMES = ("lora_A", "lora_B", "lora_A0", "lora_B0", "lora_magnitude")


def class_of(node: Mapping[str, Any], group: str) -> Any:
    """The class that the node of a group makes."""
    return locate(group, node)


def with_trained(
    build_model: Callable[[], nn.Module], trained: Path, labels: Sequence[str] = ()
) -> Callable[[], nn.Module]:
    """Makes the model of `build_model` with trained weights.

    Args:
        build_model: makes the model.
        trained: a checkpoint, or a Hugging Face folder, whose weights are read as the model is made.
        labels: those that the model is to score; its head is new if the trained one scores others.

    Raises:
        UserError: it is damaged, or its weights are those of another model.
    """
    if is_folder(trained):
        imported = read_folder(trained)
        with torch.device("meta"):
            model = build_model()
        new = new_parts(model, imported.axes["head"], imported.labels, labels, imported.family.model_class)
        imported.check(build_model, new)
        return partial(imported.build, build_model, new)
    weights = cache(partial(_stored, build_model, trained, labels))
    if rank_zero_only.rank == 0:
        weights()  # what is wrong with them is told now; other processes may need none
    return partial(_filled, build_model, weights)


def _stored(build_model: Callable[[], nn.Module], checkpoint: Path, labels: Sequence[str]) -> dict[str, Tensor]:
    """The same weights on whichever rank and in whatever precision; no random numbers are drawn for it."""
    with torch.random.fork_rng(devices=[]), default_dtype(torch.float32):
        return trained_weights(build_model, checkpoint, labels)


def _filled(build_model: Callable[[], nn.Module], weights: Callable[[], dict[str, Tensor]]) -> nn.Module:
    on_meta = torch.get_default_device().type == "meta"
    return build_model() if on_meta else with_weights(build_model, weights())


def new_parts(
    model: nn.Module,
    head: Mapping[str, Any],
    theirs: Sequence[str],
    labels: Sequence[str],
    model_class: type[nn.Module],
) -> tuple[str, ...]:
    """Names of the parts of a model that start anew.

    Args:
        model: the new one, on any device.
        head: the config node of the trained head.
        theirs: the labels that it scores.
        labels: those that the new model is to score.
        model_class: of the trained model.
    """
    found = []
    if isinstance(model, EncoderWithPairs) and not issubclass(model_class, EncoderWithPairs):
        found.append("pairs")
    kind = getattr(getattr(model, "head", None), "scores", None)
    if kind in LABELLING and (kind != class_of(head, "head").scores or tuple(theirs) != tuple(labels)):
        found.append("head")
    return tuple(found)


def parts_anew(model: nn.Module, trained: Path, labels: Sequence[str]) -> tuple[str, ...]:
    """Names of the parts of a model that start anew where it takes the weights of a checkpoint or a folder.

    Args:
        model: the new one, on any device.
        trained: as `find_trained` gives it.
        labels: those that the new model is to score.
    """
    if is_folder(trained):
        imported = read_folder(trained)
        return new_parts(model, imported.axes["head"], imported.labels, labels, imported.family.model_class)
    run = trained.parent.parent
    saved = saved_config(run)
    return new_parts(model, saved.head, labels_of_run(run), labels, class_of(saved.task, "task").model_class)


def merged_config(run: Path) -> DictConfig:
    """The config of a run's model once its adapters are merged.

    Where one of two tied matrices has an adapter, head and embedding differ then, and have a matrix each.
    """
    saved = saved_config(run)
    lora = instantiate_saved(saved, "lora")
    if lora.rank and saved.embedding.get("tied"):
        with torch.device("meta"):
            model = model_of_run(run, saved)()
        if tied(model, lora.matches(model)):
            saved.embedding.tied = False
    return saved


def model_of_run(run: Path, config: DictConfig | None = None) -> Callable[[], nn.Module]:
    """Makes the model that a run trained, with no weights of it; with another config than its own, that model."""
    config = to_plain(saved_config(run) if config is None else config)
    task = class_of(config["task"], "task")
    nodes = {group: config[group] for group in ("model", *task.model_groups)}
    check(nodes)
    check_layers(run, config)
    sizes = sizes_of_run(run)
    try:
        parts = {group: instantiate(node, group) for group, node in nodes.items()}
    except ValueError as error:
        raise UserError(f"{run} names a model that cannot be ({error}): {RESTORE}") from error
    known = arguments(task.model_class)[0]
    if issubclass(task.model_class, EncoderDecoder):  # both of its sides take the rest
        known = arguments(Encoder)[0] | known
    needed = {name for name, parameter in known.items() if parameter.default is parameter.empty} - {"shape", *parts}
    if wrong := sorted((sizes.keys() - known.keys()) | (needed - sizes.keys())):
        told = f"sizes has {'a' if wrong[0] in sizes else 'no'} {wrong[0]}"
        raise UserError(f"{run / 'data.json'} cannot be read ({told}): {RESTORE}")
    make = partial(task.model_class, shape=parts.pop("model"), **parts, **sizes)

    def build_model() -> nn.Module:
        try:
            return made(make)
        except (ValueError, UserError) as error:
            raise UserError(f"{run} names a model that cannot be ({error}): {RESTORE}") from error

    return build_model


def sizes_of_run(run: Path) -> dict[str, int]:
    """What its data gave a run's model."""
    if (sizes := read_record(run / "data.json", DataRecord).sizes) is not None:
        return sizes
    tokenizer = Pretrained(path=str(run))  # the run is of a version that wrote no sizes
    tokenizer.fit()
    return {"vocab_size": tokenizer.vocab_size, "max_len": saved_config(run).data.seq_len}


def labels_of_run(run: Path) -> list[str]:
    """The labels that a run's model scores, none if it scores none."""
    return read_labels(run) if os.path.lexists(run / LABELS) else []


def trained_weights(
    build_model: Callable[[], nn.Module], checkpoint: Path, labels: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The weights in a checkpoint for the model that `build_model` makes; its run's adapters are merged into them.

    Those of parts that start anew are left out.

    Raises:
        UserError: the checkpoint is damaged, or its weights are those of another model.
    """
    run = checkpoint.parent.parent
    saved = saved_config(run)
    with torch.device("meta"):
        model = build_model()
    theirs = class_of(saved.task, "task").model_class
    new = new_parts(model, saved.head, labels_of_run(run), labels, theirs)
    untied = merged_config(run).embedding.get("tied") != saved.embedding.get("tied")
    if type(model) is theirs and not new and not untied:
        return own_weights(build_model, checkpoint)
    if getattr(model, "causal", None) != getattr(theirs, "causal", None):
        raise UserError(
            f"init_from={run} is a {theirs.__name__}, and the task trains a {type(model).__name__}: choose another "
            "task or another run"
        )
    found = own_weights(model_of_run(run), checkpoint)
    new_names = tuple(f"{part}." for part in new)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items() if not name.startswith(new_names)}
    # A head that this model has no place for is left out.
    left_out = tuple(f"{part}." for part in HEADS if part in new or not hasattr(model, part))
    kept = {name: tuple(value.shape) for name, value in found.items() if not name.startswith(left_out)}
    check_shapes(kept, wanted, run)
    first = dict[nn.Parameter, str]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        one = first.setdefault(parameter, name)
        if one in wanted and name in wanted and not torch.equal(found[one], found[name]):
            raise UserError(f"init_from={run} has a matrix for {one} and one for {name}: set embedding.tied=false")
    return {name: found[name] for name in wanted}


def own_weights(build_model: Callable[[], nn.Module], checkpoint: Path) -> dict[str, Tensor]:
    """The weights of the model that a checkpoint was written of, without adapters."""
    model, run = adapted_model(build_model, checkpoint), checkpoint.parent.parent
    try:
        with torch.device("meta"):
            check_mergeable(model_of_run(run, merged_config(run))(), [name for name, _ in adapters(model)])
    except ValueError as error:
        raise UserError(f"{run}: {error}") from error
    merged = {f"{name}.weight": layer.merged_weight().detach() for name, layer in adapters(model)}
    return {name: value for name, value in (model.state_dict() | merged).items() if not name.endswith(ADAPTER_NAMES)}


def adapted_model(build_model: Callable[[], nn.Module], checkpoint: Path) -> nn.Module:
    """The model that `build_model` makes, with the weights in a checkpoint and its run's adapters, not merged.

    Raises:
        UserError: as `trained_weights`.
    """
    check_checkpoint(checkpoint)
    run, base = checkpoint.parent.parent, read_state(checkpoint)["base"]
    check_room(build_model, checkpoint)
    if base:
        build_model = with_trained(build_model, Path(base["path"]), labels_of_run(run))
    config = saved_config(run)
    lora, model = instantiate_saved(config, "lora"), build_model()
    lora.apply(model, adapt_only=bool(config.get("init_from")))
    frozen = {name: weight for name, weight in model.named_parameters() if not weight.requires_grad}
    if base and not is_base(base["sha256"], frozen_hash(model), build_model, lora):
        raise UserError(f"init_from={run} has adapters of other weights than those in {base['path']}: put these back")
    own_base = [checkpoint.parent / BASE] if not base and frozen.keys() - weights_in(checkpoint) else []
    for path in own_base:
        check_checkpoint(path)
    fill(model, Reader(checkpoint, *own_base), run, frozen.keys() if base else set())
    return model


def check_room(build_model: Callable[[], nn.Module], checkpoint: Path) -> None:
    """Refuses sizes of a model that are far beyond those in its checkpoint, before memory is asked for.

    Raises:
        UserError: so they are.
    """
    with torch.device("meta"):
        model = build_model()
    reader = Reader(checkpoint)
    for name, parameter in model.named_parameters():
        if parameter.numel() > LARGE and WEIGHT + name in reader:
            shape = reader.shape(WEIGHT + name)
            if parameter.numel() > 16 * prod(shape):  # not of those that are packed, 4 bits each
                check_shapes({name: shape}, {name: tuple(parameter.shape)}, checkpoint.parent.parent)


def weights_in(checkpoint: Path) -> set[str]:
    """The names of the weights that a checkpoint holds."""
    return {name.removeprefix(WEIGHT) for name in Reader(checkpoint).names(WEIGHT)}


def with_weights(build_model: Callable[[], nn.Module], weights: dict[str, Tensor]) -> nn.Module:
    """The model that `build_model` makes, with these weights; parts of which there are none start anew."""
    model = build_model()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all(name.partition(".")[0] in HEADS for name in missing), missing
    return model


def check_shapes(shapes: Mapping[str, Any], expected: Mapping[str, Any], run: Path) -> None:
    """Refuses weights, by their shapes, that are not those of a model.

    Raises:
        UserError: one is missing, too many, or of another shape.
    """
    for name in sorted(shapes.keys() | expected.keys()):
        if shapes.get(name) != expected.get(name):
            differing = f"{name} is {shapes.get(name, 'missing')} instead of {expected.get(name, 'missing')}"
            raise UserError(
                f"init_from={run} has weights of another model ({differing}): leave out overrides of the model"
            )


def fill(model: nn.Module, reader: Reader, run: Path, filled: Set[str]) -> None:
    """Puts whole tensors into those of a model's parameters that are not filled yet, tied ones once."""
    parameters = {name: parameter for name, parameter in model.named_parameters() if name not in filled}
    shapes = {name.removeprefix(WEIGHT): reader.shape(name) for name in reader.names(WEIGHT)}
    check_shapes(shapes, {name: tuple(parameter.shape) for name, parameter in parameters.items()}, run)
    with torch.no_grad():
        for name, parameter in parameters.items():
            value = reader.learned(name)
            if not is_finite(value):
                raise UserError(f"{run} has weights that are not finite ({name}): name another run or checkpoint")
            parameter.copy_(value)
