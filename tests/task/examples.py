"""Small data and runs for the tasks on text."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import soundfile
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from txtrain.config import config_directory
from txtrain.train import model_function

TEXT = Path(__file__).parents[1] / "golden" / "text.txt"
TINY = ["logger=none", "trainer.accelerator=cpu", "model.dim=32", "model.num_layers=1", "tokenizer.vocab_size=400"]
# The third one cuts up no weight of a small model unless it is told to.
ZERO = ["deepspeed_zero1", "deepspeed_zero2"]
ZERO += ["deepspeed_zero3 strategy.zero_optimization.stage3_param_persistence_threshold=0"]
LABELS = {"bad": "awful", "good": "lovely", "neutral": "so"}


def write_labelled(path, rows=150, pairs=False):
    """Sentences with a word that tells the label; of pairs it is in the second."""
    draw = random.Random(0)
    words = sorted({word for word in TEXT.read_text().split() if word.isalpha()})[:200]
    lines = []
    for number in range(rows):
        label = sorted(LABELS)[number % 3]
        first, second = ([draw.choice(words) for _ in range(draw.randint(2, 14))] for _ in range(2))
        (second if pairs else first).insert(1, LABELS[label])
        row = {"text": " ".join(first), "label": label} | ({"second": " ".join(second)} if pairs else {})
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_tagged(path, rows=100):
    """Words with a capital are entities, and neighbours are one."""
    draw = random.Random(0)
    words = sorted({word for word in TEXT.read_text().split() if word.isalpha()})
    lines = []
    for _ in range(rows):
        chosen = [draw.choice(words) for _ in range(draw.randint(2, 40))]
        tags = ["O"] * len(chosen)
        for place, word in enumerate(chosen):
            if word[0].isupper():
                tags[place] = "I-NAME" if place and tags[place - 1] != "O" else "B-NAME"
        lines.append(json.dumps({"tokens": chosen, "tags": tags}))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_pairs(path, rows=60):
    """Sentences, and the same backwards."""
    draw, words = random.Random(0), ["red", "blue", "house", "ship", "and", "horses"]
    chosen = [[draw.choice(words) for _ in range(draw.randint(1, 7))] for _ in range(rows)]
    path.write_text("".join(f"{' '.join(row)}\t{' '.join(row[::-1])}\n" for row in chosen))
    return path


def write_sounds(folder, clips=24):
    """Tones of 0.1 to 0.6 seconds: a folder for each of two heights, and a table of what they spell."""
    draw, lines = random.Random(0), []
    for number in range(clips):
        label = "ab"[number % 2]
        samples = np.arange(int(16000 * draw.uniform(0.1, 0.6)))
        file = folder / label / f"{number}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, 0.5 * np.sin(2 * math.pi * {"a": 300, "b": 1500}[label] * samples / 16000), 16000)
        lines.append(json.dumps({"file": f"{label}/{number}.wav", "text": label * draw.randint(1, 2)}))
    (folder / "said.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def new_task(*overrides):
    """The data that overrides of `train` ask for, and the task with its model, which need no trainer here."""
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = hydra.compose("train", overrides=[word for override in overrides for word in override.split()])
    parts = {group: instantiate(node, _convert_="all") for group, node in config.items() if OmegaConf.is_config(node)}
    data = parts["data"](tokenizer=parts["tokenizer"], seed=0)
    data.prepare()
    torch.manual_seed(0)
    shared = {part: parts[part] for part in ("lora", "checkpointing", "optimizer", "schedule", "loss")}
    task = parts["task"](build_model=None, **shared)
    task._trainer = SimpleNamespace(datamodule=data, world_size=1)
    task.model = model_function(parts)(**data.sizes())
    parts["lora"].apply(task.model)
    parts["checkpointing"].apply(task.model)
    return data, task


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def validations(run):
    """What the run's validations said, by step."""
    rows = [row for row in read_lines(Path(run) / "metrics.jsonl") if "validation/loss" in row]
    return [
        {name.removeprefix("validation/"): value for name, value in row.items() if name.startswith("validation/")}
        for row in rows
    ]
