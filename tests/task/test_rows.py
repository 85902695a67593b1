"""What holds of every task alike: exact counts on several ranks, gradients, adapters, options, padding, predictions."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.task.every import SIZES, TASKS, build, write_all
from tests.task.examples import read_lines
from txtrain.cli import main
from txtrain.config import config_directory, options
from txtrain.data.loader import EvaluationLoader
from txtrain.data.packing import PADDING
from txtrain.model.checkpointing import KeepAll
from txtrain.model.head import LabelHead
from txtrain.model.pooling import PoolingHead
from txtrain.saving import Reader
from txtrain.trained import load_trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_all(tmp_path_factory.mktemp("rows"))


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)


# Exact evaluation


@pytest.mark.parametrize("task", TASKS)
def test_ranks_count_each_sample_once(task):
    """All that validation adds up is the same on one rank and on three, and so are the numbers that are reported."""
    data, module = build(task, "model.dropout=0.1")
    module.eval()
    samples = data.samples("validation")
    found = {}
    with torch.no_grad():
        for ranks in (1, 3):
            seen, sums = [], {}
            for rank in range(ranks):
                loader = EvaluationLoader(
                    samples,
                    order=data.order(samples, seed=0),
                    micro=data.micro(ranks),
                    accumulation=data.accumulation(ranks),
                    rank=rank,
                    ranks=ranks,
                )
                assert len(loader) == data.order(samples, seed=0).steps * data.accumulation(ranks)
                for batch in loader:
                    seen += batch["index"][batch["index"] != PADDING].tolist()
                    for name, value in module.sums(batch).items():
                        sums[name] = sums.get(name, 0) + value
            assert sorted(seen) == list(range(len(samples)))
            found[ranks] = sums
    for name, value in found[1].items():
        exact = not value.is_floating_point()
        torch.testing.assert_close(found[3][name], value, rtol=0 if exact else 1e-5, atol=0 if exact else 1e-4)
    numbers = module.metrics(found[1])
    assert len(numbers) > 2
    assert module.metrics(found[3]) == pytest.approx(numbers, rel=1e-5, abs=1e-6, nan_ok=True)


# Gradients


@pytest.mark.parametrize("task", TASKS)
def test_every_policy_of_checkpointing_gives_the_same_gradients(task):
    """To the last bit, with dropout, whatever is computed again."""
    data, module = build(task, "model.dropout=0.2")
    samples = data.samples("train")
    batch = samples.batch(np.array([0, 1, 2, 3, len(samples) - 1, PADDING]))
    untouched, gradients = module.model, {}
    for name in options(config_directory(), "checkpointing"):
        policy = instantiate(OmegaConf.load(config_directory() / "checkpointing" / f"{name}.yaml"), _convert_="all")
        module.model = copy.deepcopy(untouched)
        policy.apply(module.model)
        assert isinstance(policy, KeepAll) == (name == "none")
        torch.manual_seed(3)
        objective, _ = module.losses(batch)
        objective.backward()
        gradients[name] = {key: weight.grad for key, weight in module.model.named_parameters()}
    plain = gradients.pop("none")
    assert len(gradients) >= 4 and all(gradient is not None for gradient in plain.values())
    for name, found in gradients.items():
        assert found.keys() == plain.keys()
        for key, gradient in found.items():
            assert torch.equal(gradient, plain[key]), f"{name}: {key}"


# Runs: adapters and predictions

STEPS = ["logger=none", "trainer.accelerator=cpu", "save.every=1000", "optimizer.lr=1e-2", "schedule=constant"]
STEPS += ["trainer.limit_val_batches=1", "trainer.log_every_n_steps=100", "checkpointing=none"]


@pytest.fixture(scope="module")
def runs(folder):
    """A run of two steps of each task, which is made when it is asked for."""

    def run(task):
        if not (folder / task).is_dir():
            words = [*TASKS[task], *SIZES, *STEPS, "trainer.max_steps=2", f"run_dir={task}"]
            assert main(["train", *words]) == 0
        return task

    return run


@pytest.mark.parametrize("task", TASKS)
def test_adapters_alone_train_on_a_trained_model(runs, task):
    """And heads of labels, which always train: a checkpoint has nothing else. Merged, they change no other layer."""
    words = [*TASKS[task], *STEPS, f"init_from={runs(task)}", "lora.rank=2"]
    words = [word for word in words if not word.startswith(("tokenizer", "embedding"))]
    assert main(["train", *words, "trainer.max_steps=2", f"run_dir={task}_adapted"]) == 0
    saved = Reader(Path(f"{task}_adapted/checkpoints/last").resolve())
    kept = {name.removeprefix("model/") for name in saved if name.startswith("model/")}
    begun, trained = (load_trained(run).model for run in (task, f"{task}_adapted"))
    heads = tuple(f"{name}." for name, module in begun.named_modules() if isinstance(module, PoolingHead | LabelHead))
    assert kept and all("lora_" in name or name.startswith(heads) for name in kept)
    before, after = begun.state_dict(), trained.state_dict()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert after.keys() == before.keys()
    adapted = {name for name in changed if not name.startswith(heads)}
    assert adapted and all(name.endswith("_proj.weight") for name in adapted)


def inputs(task):
    """A file, or files, of inputs of different lengths."""
    if task.startswith("masked"):
        texts = ["a <mask>", "First <mask>: we are <mask> and all", "<mask> in the " + "a " * 9, "who <mask>"]
    elif task == "image_classification":
        return ["pictures"]
    elif task in ("audio_classification", "speech_recognition"):
        return ["sounds/a", "sounds/b"]
    else:
        texts = ["red ship", "blue", "red house and blue ship", "and red horses", "house"]
    Path("inputs.txt").write_text("".join(f"{text}\n" for text in texts))
    return ["inputs.txt"]


@pytest.fixture(scope="module")
def pictures(folder):
    from PIL import Image

    draw = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for number in range(5):
        size = (6 + 3 * number, 20 - 2 * number)
        Image.fromarray(draw.integers(0, 256, size, dtype=np.uint8)).save(folder / "pictures" / f"{number}.png")


def numbers_in(value):
    """Probabilities, in the order in which they are told."""
    if isinstance(value, float):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [number for part in inner for number in numbers_in(part)]


def words_in(value):
    """All that is told but numbers."""
    if isinstance(value, dict):
        return {name: words_in(part) for name, part in value.items()}
    return [words_in(part) for part in value] if isinstance(value, list) else None if type(value) is float else value


@pytest.mark.parametrize("task", TASKS)
def test_no_prediction_depends_on_what_it_is_batched_with(runs, task, pictures):
    told = {}
    for size in (1, 50):
        words = [*inputs(task), "--batch-size", str(size), "--output", f"{size}.jsonl", "--device=cpu"]
        assert main(["predict", runs(task), *words]) == 0
        told[size] = read_lines(f"{size}.jsonl")
    assert len(told[1]) >= 4
    assert words_in(told[50]) == words_in(told[1])
    assert numbers_in(told[50]) == pytest.approx(numbers_in(told[1]), abs=1e-6)
    if "label" in told[1][0]:
        for row in told[1]:
            assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
            assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)
            assert row["probabilities"].keys() == set(load_trained(task).labels)
