"""Weights of labels in the loss, against torch's own."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.task.every import SIZES, TASKS, write_all
from txtrain.cli import main
from txtrain.data.labels import class_weights
from txtrain.data.loader import target_weight
from txtrain.errors import UserError
from txtrain.model.head import Loss
from txtrain.saving import Reader

WEIGHTS = torch.tensor([0.5, 2.0, 5.0], dtype=torch.float64)
RUN = [*SIZES, "logger=none", "trainer.accelerator=cpu", "optimizer=sgd", "optimizer.lr=0.1", "samples.length=0"]
RUN += ["trainer.max_steps=3", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=1", "data.batch_size=7"]


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        folder = write_all(tmp_path_factory.mktemp("weights"))
        patch.chdir(folder)
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        yield


def weighted() -> Loss:
    loss = Loss(class_weights=WEIGHTS.tolist())
    loss.weights = WEIGHTS
    return loss


def test_loss_and_gradient_are_those_of_torch() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 5, 3), torch.randint(3, (4, 5))
    targets[0, :2] = -100
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    objective, entropy = weighted()(ours * 1.0, targets)
    mean = objective / target_weight({"targets": targets}, WEIGHTS).float()
    expected = F.cross_entropy(theirs.flatten(0, 1), targets.flatten(), WEIGHTS.float())
    torch.testing.assert_close(mean, expected)
    plain = F.cross_entropy(logits.flatten(0, 1).double(), targets.flatten(), reduction="sum")
    torch.testing.assert_close(entropy, plain, rtol=1e-6, atol=0)
    mean.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_mixtures_weigh_both_labels() -> None:
    torch.manual_seed(0)
    logits, share = torch.randn(6, 3), torch.rand(6)
    first, second = torch.randint(3, (6,)), torch.randint(3, (6,))
    targets, shares = torch.stack((first, second), -1)[:, None], torch.stack((share, 1 - share), -1)[:, None]
    objective, _ = weighted()(logits[:, None].clone(), targets, shares)
    each = [F.cross_entropy(logits, labels, WEIGHTS.float(), reduction="none") for labels in (first, second)]
    torch.testing.assert_close(objective, (share * each[0] + (1 - share) * each[1]).sum())
    found = target_weight({"targets": first, "others": second, "shares": share}, WEIGHTS)
    torch.testing.assert_close(found, (share * WEIGHTS[first] + (1 - share) * WEIGHTS[second]).sum())


def test_balanced_weights_are_scikit_learns() -> None:
    labels = ["a", "b", "c", "never"]
    found = class_weights("balanced", lambda: [6, 3, 1, 0], labels)
    assert found.tolist() == pytest.approx([10 / (4 * 6), 10 / (4 * 3), 10 / 4, 0.0])
    with pytest.raises(UserError, match="has 2 weights, and the data have 4 labels"):
        class_weights([1.0, 2.0], lambda: [], labels)
    assert class_weights(None, lambda: [], labels) is None


def train(task: str, name: str, *overrides: str) -> dict[str, torch.Tensor]:
    words = [word for word in TASKS[task] if not word.startswith("data.batch")] + ["head.dropout=0"]
    assert main(["train", *words, *RUN, f"run_dir={name}", *overrides]) == 0
    reader = Reader(Path(name, "checkpoints/last").resolve())
    return {key: reader[key] for key in reader if key.startswith("model/")}


@pytest.mark.parametrize("task", ["sequence_classification", "token_classification", "image_classification"])
def test_micro_batches_add_up_to_the_weighted_mean_of_the_step(task: str) -> None:
    few = "[1,9,3]" if task == "sequence_classification" else "balanced"
    whole = train(task, f"{task}-whole", f"loss.class_weights={few}")
    parts = train(task, f"{task}-parts", f"loss.class_weights={few}", "data.micro_batch_size=2")
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], rtol=0, atol=2e-6)
    if task == "sequence_classification":
        plain = train(task, f"{task}-plain")
        assert max((plain[name] - whole[name]).abs().max() for name in whole) > 1e-4
        rows = [json.loads(line) for line in Path(f"{task}-whole/metrics.jsonl").read_text().splitlines()]
        others = [json.loads(line) for line in Path(f"{task}-plain/metrics.jsonl").read_text().splitlines()]
        assert rows[0]["train/loss"] == pytest.approx(others[0]["train/loss"], rel=1e-6)  # metrics are unweighted


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["task=causal_lm", "loss.class_weights=balanced"], "CausalLM has none"),
        ([*TASKS["speech_recognition"], "loss.class_weights=balanced"], "SpeechRecognition has none"),
        ([*TASKS["sequence_classification"], "loss.class_weights=[1,2,3,4,5,6]"], "has 6 weights"),
        ([*TASKS["sequence_classification"], "loss.class_weights=[1,-2]"], "give a positive number for each label"),
        (
            [*TASKS["sequence_classification"], "loss.class_weights=balanced", "loss.label_smoothing=0.1"],
            "set loss.label_smoothing=0",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(overrides: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", *overrides, "logger=none", "trainer.accelerator=cpu", "run_dir=mistake"]) == 1
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1 and not Path("mistake").exists()
