"""`txtrain export`: a trained model as a Hugging Face folder, read again and compared before it gets its name."""

import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from txtrain.arguments import Parser
from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError
from txtrain.interop.adapter import export_adapter
from txtrain.interop.axes import Nodes, typed
from txtrain.interop.beside import said_of_input, write_beside, write_json
from txtrain.interop.check import compare
from txtrain.interop.choice import nearest_family, of_class, with_table
from txtrain.interop.families import families
from txtrain.interop.family import Family
from txtrain.interop.folder import CONFIG, is_folder, read_folder
from txtrain.interop.unfinished import unfinished
from txtrain.interop.weights import INDEX, SINGLE
from txtrain.model.patches import Pieces
from txtrain.saving import write_tensors
from txtrain.terminal import Phase
from txtrain.trained import Trained, load_trained

DESCRIPTION = """A trained model as a folder for transformers, vLLM and others.

  txtrain export runs/gpt/RUN FOLDER                     the family that expresses the model
  txtrain export runs/gpt/RUN FOLDER --dtype bfloat16    half the size
  txtrain export runs/gpt/RUN FOLDER --adapter           its adapters alone, for peft

MODEL is a run directory (its best checkpoint), a checkpoint of it, or a Hugging Face model's folder; adapters are
merged. The folder is read again, here and by transformers if that is installed, and appears only if the logits are
equal."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(arguments: Sequence[str]) -> None:
    """Does what the command line asks for."""
    options = parse(arguments)
    folder = Path(options.folder).expanduser()
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} exists: name a folder that does not")
    if options.adapter:
        export_adapter(options.model, folder)
        return
    saved = read_folder(options.model).dtype if is_folder(options.model) else torch.float32
    with Phase("loading the model"):
        trained = load_trained(options.model, dtype=DTYPES.get(options.dtype, saved))
    family = choose_family(trained, options.family)
    with unfinished(folder) as partial:
        with Phase(f"writing {folder}"):
            write_folder(partial, trained, family, shard_bytes=int(options.shard_gb * 1e9))
        with Phase("comparing the logits of the folder and the model"):
            checked = compare(trained, partial)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(f"{folder}: {family.model_types[0]}, {size / 1e6:.1f} MB, {checked}")


def parse(arguments: Sequence[str]) -> Namespace:
    """The options."""
    parser = Parser(prog="txtrain export", usage="txtrain export MODEL FOLDER [options]", description=DESCRIPTION)
    add = parser.add_argument
    add("model", metavar="MODEL", help="run, checkpoint or folder")
    add("folder", metavar="FOLDER", help="where to; it must not exist yet")
    add("--family", metavar="NAME", help="such as llama (default: the one that expresses the model)")
    add("--dtype", choices=DTYPES, help="of the weights (default: float32, or the folder's)")
    add("--adapter", action="store_true", help="the run's adapters alone, in PEFT's format")
    add("--shard-gb", type=float, default=5.0, metavar="N", help="most gigabytes of a file (5)")
    options = parser.parse_args(arguments)
    if not 0 < options.shard_gb < math.inf:
        raise UserError(f"--shard-gb is {options.shard_gb}: give a positive number")
    return options


def choose_family(trained: Trained, name: str | None = None) -> Family:
    """The family that has all axes of a model: the one that was asked for, that it came from, or the first.

    Raises:
        UserError: there is none; what the nearest one lacks is named.
    """
    known = families()
    if name is not None and name not in known:
        raise UserError(f"--family {name} is not known: txtrain writes {', '.join(sorted(known))}")
    candidates = of_class(type(trained.model))
    if name is not None:
        candidates = [known[name]]
    elif trained.family is not None:
        candidates = [trained.family, *(family for family in candidates if family is not trained.family)]
    nodes = _axes(trained)
    nearest = nearest_family(candidates, nodes)
    if nearest is None:
        raise UserError(f"no family that txtrain writes has a model like {type(trained.model).__name__}")
    family, lacking = nearest
    if lacking:
        raise UserError(
            f"{'' if name else 'no family expresses this model: '}{family.model_types[0]}"
            f"{'' if name else ', the nearest,'} has no counterpart of {typed(lacking, nodes)}"
        )
    return family


def write_folder(folder: Path, trained: Trained, family: Family, *, shard_bytes: int) -> None:
    """Writes config, weights, and what belongs to them."""
    folder.mkdir(parents=True)
    config = new_config(trained, family)
    write_json(folder / CONFIG, config)
    write_weights(folder, trained.model, family, shard_bytes=shard_bytes, heads=trained.axes["model"]["num_heads"])
    write_beside(folder, trained, max_len=config[family.max_len] if family.max_len else trained.max_len)


def new_config(trained: Trained, family: Family) -> dict[str, Any]:
    """The whole config.json."""
    weight = trained.model.get_parameter(next(name for name, _ in trained.model.named_parameters()))
    config = family.config(_axes(trained))
    if family.max_len:
        config.setdefault(family.max_len, trained.max_len)
    dtype = str(weight.dtype).removeprefix("torch.")
    # RoBERTa's number of the padding token says where positions begin.
    return {"dtype": dtype} | said_of_input(trained) | config


def _axes(trained: Trained) -> Nodes:
    """The axes, with the length of a table of positions that the data gave it."""
    return with_table(trained.axes, trained.max_len if isinstance(trained.inputs, Tokenizer) else None)


def write_weights(folder: Path, model: nn.Module, family: Family, *, shard_bytes: int, heads: int) -> None:
    """Writes the weights, a file at a time, so that no more than one is in memory besides the model."""
    sizes = dict(_sizes(model, family))
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    tensors, places = their_tensors(model, family, heads=heads), dict[str, str]()
    for number, names in enumerate(shards, start=1):
        file = SINGLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, dict(islice(tensors, len(names))), {"format": "pt"})
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places}
        write_json(folder / INDEX, index)


def their_tensors(model: nn.Module, family: Family, *, heads: int) -> Iterator[tuple[str, Tensor]]:
    """Their name and tensor of each weight, made one by one."""
    kernel = next((module.kernel for module in model.modules() if isinstance(module, Pieces)), ())
    names, own = family.names, dict(model.named_parameters())
    for name in own:
        place = names.find(name, own)
        assert place is not None, name
        if place.part == 0:
            parts = [own[sibling].detach() for sibling in place.siblings]
            rows = [len(part) // (heads if place.rule.by_head else 1) for part in parts]
            # A copy, since safetensors refuses tensors that share memory with others.
            yield place.theirs, place.rule.to_theirs(parts, rows, kernel).cpu().contiguous().clone()


def _sizes(model: nn.Module, family: Family) -> Iterator[tuple[str, int]]:
    names, own = family.names, dict(model.named_parameters())
    for name in own:
        place = names.find(name, own)
        if place is None:
            raise UserError(f"{family.model_types[0]} has no counterpart of the weight {name}")
        if place.part == 0:
            yield place.theirs, sum(own[sibling].nbytes for sibling in place.siblings)
