"""`txtrain export MODEL FOLDER --adapter`: a run's adapters as PEFT's folder, read again before it gets its name."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from txtrain.config import instantiate_saved, saved_config, to_plain
from txtrain.data.labels import write_labels
from txtrain.errors import UserError
from txtrain.interop.adapted import new_model, read_adapted
from txtrain.interop.check import logits, random_inputs
from txtrain.interop.folder import Imported, is_folder, read_folder
from txtrain.interop.peft import TENSORS, write_adapter
from txtrain.interop.tokenizer import write_tokenizer
from txtrain.interop.unfinished import unfinished
from txtrain.run_model import adapted_model, class_of, labels_of_run, model_of_run
from txtrain.saving import read_state
from txtrain.trained import find_checkpoint_of

TOKENS = 16


def export_adapter(path: str | Path, folder: Path) -> None:
    """Writes the adapters of a run, or of one of its checkpoints, that adapts a Hugging Face model.

    Raises:
        UserError: there are none, or they are not all of what the run has changed.
    """
    path = Path(path).expanduser().absolute()
    checkpoint = find_checkpoint_of(path)
    if checkpoint is None:
        raise UserError(
            f"{path} is no run and no checkpoint of one, which has adapters: name a run, or leave out --adapter"
        )
    run = checkpoint.parent.parent
    config = saved_config(run)
    lora = instantiate_saved(config, "lora")
    if not lora.rank:
        raise UserError(f"{path} has no adapters (lora.rank=0): leave out --adapter")
    if lora.merge_every:
        raise UserError(f"{path} has merged adapters into its weights, so they say not all: leave out --adapter")
    base = (read_state(checkpoint)["base"] or {}).get("path", config.init_from)
    if not base or not is_folder(base):
        raise UserError(f"{path} adapts {base or 'random weights'}, no Hugging Face folder: leave out --adapter")
    imported, labels = read_folder(base), labels_of_run(run)
    model = adapted_model(model_of_run(run) if labels else new_model(imported), checkpoint)
    architecture = _class_with(imported, to_plain(config.head)) if labels else None
    heads = imported.axes["model"]["num_heads"]
    names = {"base": imported.path, "rslora": lora.variant == "rslora", "architecture": architecture}
    with unfinished(folder) as partial:
        write_adapter(partial, model, imported.family, heads=heads, **names)
        if imported.family.reads == "tokens":
            tokenizer = class_of(config.data, "data").reader(run, instantiate_saved(config, "tokenizer"))
            write_tokenizer(partial, tokenizer, run, max_len=imported.max_len)
        if labels:
            write_labels(partial, labels)
        adapted = read_adapted(partial)
        with torch.device("meta"):
            read = new_model(adapted)()
        adapted.adapt(read)
        _compare(model, read, random_inputs(imported, TOKENS))
    print(f"{folder}: adapter of {imported.path}, {(folder / TENSORS).stat().st_size / 1e6:.1f} MB, read again: equal")


def _class_with(imported: Imported, head: dict[str, Any]) -> str:
    """The class of `transformers` that is a folder's model with another head."""
    try:
        return str(imported.family.config(imported.axes | {"head": head})["architectures"][0])
    except UserError as error:
        raise UserError(f"{error}, so its head has no place beside an adapter: leave out --adapter") from error


@torch.no_grad()
def _compare(written: nn.Module, read: nn.Module, inputs: Tensor) -> None:
    """Raises unless both give the same logits."""
    ours, again = (logits(model.eval(), inputs).float() for model in (written, read))
    difference = (ours - again).abs().max() / ours.abs().max()
    if not difference < 1e-3:
        raise UserError(f"the adapter was read again and gives other logits (by {difference:.1e}): please report this")
