"""Averages of weights: the formula, what is validated, and what checkpoints hold."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback
from torch import Tensor

from tests.callbacks.tiny import Run
from txtrain.callbacks.averaging import Averaging
from txtrain.saving import Reader


class Watch(Callback):
    """Keeps the weights after each step, and those that are validated."""

    def __init__(self) -> None:
        self.trained: list[list[Tensor]] = []
        self.validated: list[list[Tensor]] = []

    def on_train_batch_end(self, trainer: Any, task: Any, *rest: Any) -> None:
        self.trained.append([weight.detach().clone() for weight in task.model.parameters()])

    def on_validation_epoch_start(self, trainer: Any, task: Any) -> None:
        self.validated.append([weight.detach().clone() for weight in task.model.parameters()])

    def averages(self, decay: float) -> list[Tensor]:
        """The formula in float64."""
        found = [weight.double() for weight in self.trained[0]]
        for step, weights in enumerate(self.trained[1:], start=2):
            kept = min(decay, (step + 1) / (step + 10))
            found = [kept * old + (1 - kept) * new.double() for old, new in zip(found, weights, strict=True)]
        return found


def close(one: list[Tensor], other: list[Tensor]) -> None:
    for first, second in zip(one, other, strict=True):
        torch.testing.assert_close(first.double(), second.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_the_average_is_validated_and_training_does_not_feel_it(tmp_path: Path, decay: float) -> None:
    plain = Run(tmp_path / "plain", validate=5).fit()
    watch = Watch()
    run = Run(tmp_path / "averaged", validate=5, averaging=Averaging(decay=decay), extra=[watch]).fit()
    assert all(torch.equal(one, other) for one, other in zip(run.weights(), plain.weights(), strict=True))
    assert len(watch.validated) == 2
    close(watch.validated[-1], watch.averages(decay))
    assert not torch.allclose(watch.validated[-1][0], watch.trained[-1][0])


def test_a_checkpoint_holds_both_and_training_goes_on_from_it_exactly(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole", validate=3, averaging=Averaging(decay=0.9)).fit()
    Run(tmp_path / "cut", max_steps=6, validate=3, averaging=Averaging(decay=0.9)).fit()
    checkpoint = (tmp_path / "cut/checkpoints/last").resolve()
    reader = Reader(checkpoint)
    names = [name.removeprefix("model/") for name in reader.names("model/")]
    for name in names:
        assert torch.equal(reader.learned(name), reader[f"optimizer/{name}/average"])
        assert not torch.equal(reader.learned(name), reader[f"model/{name}"])
    again = Run(tmp_path / "cut", validate=3, averaging=Averaging(decay=0.9)).fit(checkpoint)
    for one, other in zip(again.weights() + again.optimizer(), whole.weights() + whole.optimizer(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_within_a_validation_holds_the_weights_that_train(tmp_path: Path) -> None:
    class SaveWithin(Callback):
        def on_validation_batch_end(self, trainer: Any, *rest: Any) -> None:
            self.validated = next(trainer.lightning_module.model.parameters()).detach().clone()
            trainer.strategy.save_checkpoint({}, tmp_path / "within")
            trainer.strategy.writing.result()
            assert torch.equal(next(trainer.lightning_module.model.parameters()), self.validated)

    within = SaveWithin()
    run = Run(tmp_path / "run", max_steps=4, validate=4, averaging=Averaging(decay=0.9), extra=[within]).fit()
    reader = Reader(tmp_path / "within")
    assert torch.equal(reader["model/0.weight"], run.weights()[0])
    assert torch.equal(reader["optimizer/0.weight/average"], within.validated)


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ema\.decay is 1\.0"):
        Averaging(decay=1.0)
