"""Each option of each axis trains with each task on text, padding and all; and padding never shows in a real token."""

import hydra
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.task.every import learns_by_heart
from tests.task.examples import TEXT, new_task, write_labelled, write_tagged
from txtrain.config import config_directory, options
from txtrain.data.packing import PADDING
from txtrain.train import model_function

SIZES = ["model.dim=16", "model.num_layers=2", "model.num_heads=2", "tokenizer.vocab_size=300", "data.batch_size=8"]
TASKS = {
    "masked_lm": f"task=masked_lm data=text data.path={TEXT} data.seq_len=24",
    "masked_lm of documents": f"task=masked_lm data=text data.path={TEXT} data.seq_len=24 data.packing=documents",
    "masked_pairs": f"task=masked_pairs data=text data.path={TEXT} data.seq_len=24 data.masking.unit=span",
    "sequence_classification": "task=sequence_classification data=labelled data.path=rows.jsonl data.seq_len=24",
    "mean of a text": "task=sequence_classification data=labelled data.path=rows.jsonl data.seq_len=24 head=mean",
    "token_classification": "task=token_classification data=tagged data.path=tags.jsonl data.seq_len=24",
}
AXES = {
    axis: [f"{axis}={option}" for option in options(config_directory(), axis)]
    for axis in ("encoding", "norm", "attention", "ffn", "checkpointing")
}
AXES["encoding"].remove("encoding=xpos")  # looks back only
AXES["lora"] = ["lora.rank=0", *(f"lora.rank=4 lora.variant={variant}" for variant in ("lora", "rslora", "dora"))]


def rows():
    """For each task a few rows in which each option of each axis occurs with it."""
    longest = max(map(len, AXES.values()))
    for number, task in enumerate(TASKS):
        if " " in task:  # the same task in another way
            continue
        for turn in range(longest):
            chosen = [found[(turn + number * place) % len(found)] for place, found in enumerate(AXES.values())]
            yield task, " ".join(chosen)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    write_labelled(folder / "rows.jsonl", rows=60)
    write_tagged(folder / "tags.jsonl", rows=40)
    return folder


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)


def build(*overrides):
    return new_task(*SIZES, *overrides)


@pytest.mark.parametrize(("task", "axes"), list(rows()), ids=lambda value: value.replace(" ", ","))
def test_every_option_trains_with_every_task(task, axes):
    data, task = build(TASKS[task], axes)
    samples = data.samples("train")
    batch = samples.batch(some(samples))
    assert learns_by_heart(task, batch, steps=6)


def some(samples):
    """Some samples, the last one, which in masked text is padded, and an empty row."""
    return np.array([*range(min(6, len(samples) - 1)), len(samples) - 1, PADDING])


@pytest.mark.parametrize("head", ["transform", "class_token", "mean", "labels"])
@pytest.mark.parametrize("encoding", AXES["encoding"])
def test_padding_never_shows(encoding, head):
    """What is said of a real token is the same without padding, and whatever stands in its place."""
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        overrides = [*SIZES, encoding, "norm=post", "embedding.token_types=2"]
        config = hydra.compose("train", overrides=[*overrides, "task=masked_lm", f"head={head}"])
    parts = {group: instantiate(node, _convert_="all") for group, node in config.items() if OmegaConf.is_config(node)}
    torch.manual_seed(0)
    model = model_function(parts)(vocab_size=50, max_len=16, num_labels=5).double().eval()
    for parameter in model.parameters():  # biases and tables begin at zero, which would hide what they do
        torch.nn.init.normal_(parameter, std=0.3)
    draws = torch.Generator().manual_seed(0)
    tokens, types = torch.randint(50, (2, 16), generator=draws), torch.randint(2, (2, 16), generator=draws)
    padding = torch.arange(16) < torch.tensor([[9], [16]])
    padded = model(tokens, types=types, padding=padding)
    alone = model(tokens[:1, :9], types=types[:1, :9])
    other = tokens.where(padding, torch.randint(50, (2, 16), generator=draws))
    changed = model(other, types=types, padding=padding)
    real = slice(0, 9) if padded.dim() == 3 else slice(None)
    torch.testing.assert_close(padded[0, real], alone[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(padded[0, real], changed[0, real], rtol=0, atol=0)
    torch.testing.assert_close(padded[1], changed[1], rtol=0, atol=0)


@pytest.mark.parametrize("task", TASKS)
def test_parts_of_a_batch_add_up(task):
    """Objective, entropy and all sums are those of the batch, however it is divided, and empty rows add nothing."""
    data, task = build(TASKS[task], "model.dropout=0", "head.dropout=0" if "classification" in TASKS[task] else "")
    task.eval()
    task.trainer = type("Trainer", (), {"datamodule": data})
    samples = data.samples("train")
    index = some(samples)
    with torch.no_grad():
        whole, parts = (
            task.sums(samples.batch(index)),
            [task.sums(samples.batch(index[[place]])) for place in range(len(index))],
        )
        for name, value in whole.items():
            torch.testing.assert_close(sum(part[name] for part in parts), value, rtol=1e-5, atol=1e-5)
        objective = task.losses(samples.batch(index))[0]
        apart = sum(task.losses(samples.batch(index[[place]]))[0] for place in range(len(index)))
    torch.testing.assert_close(apart, objective, rtol=1e-5, atol=1e-4)
