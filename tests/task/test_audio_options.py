"""Every option of every axis trains on sound, with each task, on clips of different lengths."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.test_options import AXES, compose
from txtrain.data.loader import StepLoader
from txtrain.train import model_function

SIZES = ["model.dim=16", "model.num_layers=2", "model.num_heads=4", "model.num_kv_heads=2", "data.features.num_mels=16"]
SIZES += ["data.batch_size=4", "data.max_seconds=0.5", "data.augment.time_masks=0", "data.augment.frequency_masks=0"]
DECODERS_ONLY = ["encoding=xpos"]
TASKS = {
    "labels": "task=audio_classification",
    "patches": "task=audio_classification embedding=spectrogram_patches head=class_token",
    "ast": "task=audio_classification embedding=spectrogram_patches embedding.distillation_token=true head=token_mean",
    "text": "task=speech_recognition",
}
ON_SOUND = {axis: AXES[axis] for axis in ("encoding", "norm", "attention", "ffn", "checkpointing", "lora")}
ON_SOUND["encoding"] = [option for option in ON_SOUND["encoding"] if option not in DECODERS_ONLY]
ROWS = [
    {"task": TASKS[task]} | {axis: found[number % len(found)] for axis, found in ON_SOUND.items()}
    for number in range(max(map(len, ON_SOUND.values())))
    for task in ("labels", "text")
]
ON_GRIDS = [{"task": TASKS["patches"], "encoding": f"encoding={name}"} for name in ("learned", "none")]
ON_GRIDS.append({"task": TASKS["ast"], "encoding": "encoding=learned"})


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Tones of two heights and of any length, with a label and a text."""
    folder, random = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    lines = {"labels.csv": ["file,label"], "text.csv": ["file,text"]}
    for i in range(16):
        samples = int(16000 * random.uniform(0.1, 0.5))
        tone = np.sin(2 * np.pi * (300, 1500)[i % 2] * np.arange(samples) / 16000)
        soundfile.write(folder / f"{i}.wav", 0.5 * tone, 16000)
        lines["labels.csv"].append(f"{i}.wav,{'ab'[i % 2]}")
        lines["text.csv"].append(f"{i}.wav,{'ab'[i % 2]}")
    for name, rows in lines.items():
        (folder / name).write_text("\n".join(rows))
    return folder


def train(config, steps=10):
    """Losses of each step."""
    parts = {group: instantiate(node, _convert_="all") for group, node in config.items() if OmegaConf.is_config(node)}
    data = parts["data"](tokenizer=parts["tokenizer"], seed=0)
    data.prepare()
    groups = {group: parts[group] for group in ("lora", "checkpointing", "optimizer", "schedule", "loss")}
    torch.manual_seed(0)
    task = parts["task"](build_model=model_function(parts), **groups)
    task._trainer = SimpleNamespace(datamodule=data)
    task.model = task.build_model(**data.sizes())
    parts["lora"].apply(task.model)
    parts["checkpointing"].apply(task.model)
    optimizer = torch.optim.AdamW([p for p in task.model.parameters() if p.requires_grad], lr=1e-2)
    samples, losses = data.samples("train"), []
    while len(losses) < steps:
        for batch in StepLoader(samples, order=data.order(samples, seed=0), micro=4, accumulation=1):
            objective, _ = task.losses(batch)
            optimizer.zero_grad()
            (objective / batch["step_tokens"]).backward()
            for name, parameter in task.model.named_parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None, f"{name} receives no gradient"
                    assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
            optimizer.step()
            losses.append(objective.item() / batch["step_tokens"].item())
    return losses


@pytest.mark.parametrize("row", [*ROWS, *ON_GRIDS], ids=lambda row: ",".join(row.values()).replace(" ", ","))
def test_every_option_trains(row, sounds):
    table = "text.csv" if row["task"] == TASKS["text"] else "labels.csv"
    own = [
        "data=audio_folder",
        f"data.path={sounds / table}",
        f"data.cache_dir={sounds}",
        "data.validation_fraction=0.2",
    ]
    config = compose(row["task"], *own, *SIZES, *(option for axis, option in row.items() if axis != "task"))
    losses = train(config)
    assert sum(losses[-3:]) < sum(losses[:3])
