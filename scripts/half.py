"""Trains the default job in float32 and bf16-true, and writes losses and costs into docs/optimizers.md.

python -m scripts.half FOLDER [SEEDS]

Losses that are in FOLDER already are not measured again, so a script that was stopped goes on. Three seeds, the
default, take about 45 minutes of two cores.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from txtrain.cli import main as txtrain
from txtrain.model import Decoder, Shape
from txtrain.model.attention import Attention
from txtrain.model.embed import Embedding
from txtrain.model.encoding import NoEncoding
from txtrain.model.ffn import GatedFeedForward
from txtrain.model.head import Head
from txtrain.model.norm import PreNorm
from txtrain.optim import Muon, adamw, in_float32, sgd

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "optimizers.md"
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {"adamw": adamw, "muon": Muon, "sgd": sgd}
PRECISIONS = {"32": torch.float32, "bf16-true": torch.bfloat16}
SEEDS = 3
SETTINGS = ["trainer.max_steps=200", "trainer.val_check_interval=200", "trainer.accelerator=cpu", "logger=none"]
SETTINGS += ["samples.length=0"]
STEPS = 3
PRODUCTS = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")}


class FastProducts(TorchDispatchMode):
    """Products of bfloat16 matrices are computed in float32 and rounded, as GPUs do.

    PyTorch's own are 15 times slower on processors without instructions for bfloat16.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in args if isinstance(value, torch.Tensor)]
        if func not in PRODUCTS or tensors[0].dtype != torch.bfloat16:
            return func(*args, **kwargs or {})
        wide = [value.float() if isinstance(value, torch.Tensor) else value for value in args]
        return func(*wide, **kwargs or {}).bfloat16()


def loss(folder: Path, optimizer: str, precision: str, seed: int) -> float:
    """Of validation, at the end of a run."""
    run = folder / f"{optimizer}_{precision}_{seed}"
    if not (run / "summary.json").exists():
        typed = [f"optimizer={optimizer}", f"trainer.precision={precision}", f"seed={seed}", f"run_dir={run}"]
        environment = os.environ | {"TXTRAIN_CACHE": str(folder / "cache")}
        command = [sys.executable, "-m", "scripts.half", "train", *SETTINGS, *typed]
        subprocess.run(command, env=environment, cwd=ROOT, check=True)
    return json.loads((run / "summary.json").read_text())["validation_loss"]


def losses(folder: Path, seeds: int) -> str:
    """A row for each optimizer: losses of each seed by precision, and how far apart they are."""
    rows = [["optimizer", *(f"`{precision}`" for precision in PRECISIONS), "difference", "of the means"]]
    for optimizer in OPTIMIZERS:
        full, half = ([loss(folder, optimizer, precision, seed) for seed in range(seeds)] for precision in PRECISIONS)
        apart = [there - here for here, there in zip(full, half, strict=True)]
        columns = [(full, ".4f"), (half, ".4f"), (apart, "+.4f"), ([mean(apart)], "+.4f")]
        rows.append([f"`{optimizer}`", *(", ".join(format(number, form) for number in some) for some, form in columns)])
    return table(rows)


def cost(optimizer: str, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes of weights, gradients and the optimizer's state, and nanoseconds of one CPU core in a step, per weight."""
    shape = Shape(dim=512, num_layers=4, num_heads=8)
    parts = {"embedding": Embedding, "head": Head, "encoding": NoEncoding, "norm": PreNorm}
    model = Decoder(vocab_size=4096, max_len=8, shape=shape, attention=Attention, ffn=GatedFeedForward, **parts)
    model.to(dtype)
    inner = OPTIMIZERS[optimizer](model)
    stepped = in_float32(inner, model, seed=0, step=lambda: 0)
    times = []
    for _ in range(STEPS):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        start = time.process_time()
        with FastProducts():
            stepped.step()
        times.append(time.process_time() - start)
    tensors = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
    tensors += getattr(stepped, "masters", {}).values()
    tensors += [value for state in inner.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    weights = sum(parameter.numel() for parameter in model.parameters())
    return sum(tensor.nbytes for tensor in tensors) / weights, min(times) / weights * 1e9


def costs() -> str:
    """A row for each optimizer: memory and time by precision."""
    torch.set_num_threads(1)
    names = [f"{what}, `{precision}`" for what in ("bytes a weight", "ns a weight") for precision in PRECISIONS]
    rows = [["optimizer", *names]]
    for optimizer in OPTIMIZERS:
        found = [cost(optimizer, dtype) for dtype in PRECISIONS.values()]
        rows.append([f"`{optimizer}`", *(f"{memory:.1f}" for memory, _ in found), *(f"{ns:.1f}" for _, ns in found)])
    return table(rows)


def table(rows: list[list[str]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def write(mark: str, content: str) -> None:
    """Puts a table where its mark is in the page, in place of the one that stands there."""
    before, line, rest = PAGE.read_text().partition(f"<!-- {mark} -->\n")
    assert line, mark
    PAGE.write_text(before + line + content + "\n" + rest.partition("\n\n" if rest.startswith("|") else "\n")[2])


def main(arguments: list[str]) -> None:
    if arguments[0] == "train":
        with FastProducts():
            sys.exit(txtrain(arguments))
    write("losses of 16 bits", losses(Path(arguments[0]).resolve(), int(arguments[1]) if arguments[1:] else SEEDS))
    write("costs of 16 bits", costs())


if __name__ == "__main__":
    main(sys.argv[1:])
