"""The options of the axes with every task: each trains, in pairs too, and none lets padding show."""

import numpy as np
import pytest
import torch

from tests.pairwise import pairwise
from tests.task.every import TASKS, build, learns_by_heart, write_all
from txtrain.config import config_directory, options
from txtrain.data.packing import IGNORED, PADDING

AXES = {
    axis: [f"{axis}={option}" for option in options(config_directory(), axis)]
    for axis in ("encoding", "norm", "attention", "ffn", "checkpointing")
}
AXES["encoding"].remove("encoding=xpos")  # looks back only
AXES["attention"] = ["attention=full", "attention=sliding attention.window=3", "attention.qk_norm=head"]
AXES["lora"] = ["lora.rank=0", *(f"lora.rank=4 lora.variant={variant}" for variant in ("lora", "rslora", "dora"))]
OF_NUMBERS = ("encoding", "norm", "attention", "ffn")  # which change what a model says
NO_GRID = ["encoding=fire"]
PADDED = [task for task in TASKS if task != "image_classification"]


def axes_of(task, names=tuple(AXES)):
    axes = {name: AXES[name] for name in names}
    if task == "image_classification":
        axes["encoding"] = [option for option in axes["encoding"] if option not in NO_GRID]
    return axes


def each_once(axes):
    """A few rows in which each option occurs."""
    return [
        {name: found[(turn + place) % len(found)] for place, (name, found) in enumerate(axes.items())}
        for turn in range(max(map(len, axes.values())))
    ]


def cases(quick, tasks, names=tuple(AXES)):
    """Of some tasks each option once, of all of them each pair of options where there is the time for it."""
    found = [(task, " ".join(row.values())) for task in quick for row in each_once(axes_of(task, names))]
    rows = pairwise(axes_of("", names))
    for task in tasks:
        its = pairwise(axes_of(task, names)) if axes_of(task) != axes_of("") else rows
        found += [pytest.param(task, " ".join(row.values()), marks=pytest.mark.heavy) for row in its]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("options"))


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)


def some(samples):
    """Some samples, the last one, which in masked text is padded, and an empty row."""
    return np.array([*range(min(6, len(samples) - 1)), len(samples) - 1, PADDING])


@pytest.mark.parametrize(("task", "row"), cases(["translation"], TASKS))
def test_options_train_in_pairs(task, row):
    """A batch is learned by heart, and every weight that trains has a part in it."""
    data, module = build(task, row)
    samples = data.samples("train")
    batch = samples.batch(some(samples))
    assert learns_by_heart(module, batch, steps=8)


def with_other_padding(batch):
    """The same batch, in which random numbers stand where there is nothing."""
    draws = torch.Generator().manual_seed(5)

    def other(name, real):
        return batch[name].where(real, torch.randint(int(batch[name].max()) + 1, batch[name].shape, generator=draws))

    if "frames" in batch:
        real = torch.arange(batch["frames"].size(1)) < batch["lengths"][:, None]
        noise = torch.randn(batch["frames"].shape, generator=draws, dtype=torch.float64)
        return batch | {"frames": batch["frames"].where(real[..., None], noise)}
    if "source" in batch:
        target = batch["targets"] != IGNORED
        return batch | {"source": other("source", batch["source_padding"]), "tokens": other("tokens", target)}
    changed = {"tokens": other("tokens", batch["padding"])}
    return batch | changed | ({"types": other("types", batch["padding"])} if "types" in batch else {})


@pytest.mark.parametrize(("task", "row"), cases(["sequence_classification", "speech_recognition"], PADDED, OF_NUMBERS))
def test_padding_never_shows(task, row):
    """The loss of a sample is what it is alone, without the padding that others bring, whatever stands there."""
    data, module = build(task, row)
    module.model.double().eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.model.parameters():  # none hides what it does by being zero
            parameter += 0.2 * torch.randn_like(parameter)
        samples = data.samples("validation")
        index = some(samples)

        def entropy(index, change=lambda batch: batch):
            batch = samples.batch(index)
            batch = change({name: x.double() if x.is_floating_point() else x for name, x in batch.items()})
            return module.losses(batch)[1]

        whole = entropy(index)
        assert whole.isfinite() and whole > 0
        assert entropy(index, with_other_padding) == whole
        alone = sum(entropy(index[[place]]) for place in range(len(index)))
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-6)
