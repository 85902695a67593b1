"""Loss spikes by the command line: told with their samples, left out, or the end of a run."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from tests.callbacks.tiny import Run
from txtrain.callbacks import spikes
from txtrain.callbacks.spikes import LossWindow
from txtrain.cli import main
from txtrain.task.causal_lm import CausalLM

ROOT = Path(__file__).parent.parent
TINY = ["train", "data=text", f"data.path={ROOT / 'tests/golden/text.txt'}", "tokenizer=byte", "data.seq_len=32"]
TINY += ["model.dim=32", "model.num_layers=1", "logger=none", "trainer.accelerator=cpu", "trainer.limit_val_batches=1"]
TINY += ["data.batch_size=4", "trainer.log_every_n_steps=1", "run_dir=run"]

Poison = Callable[[dict[int, float]], list[list[int]]]


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Poison:
    """Multiplies the losses of the steps that are named; the result lists the samples of each step as they are seen."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    losses, seen = CausalLM.losses, []

    def use(factors: dict[int, float]) -> list[list[int]]:
        def poisoned(task: CausalLM, batch: dict[str, Any]) -> Any:
            objective, entropy = losses(task, batch)
            if not task.training:
                return objective, entropy
            seen.append(batch["index"].tolist())
            factor = factors.get(task.global_step + 1, 1.0)
            return objective * factor, entropy * factor

        monkeypatch.setattr(CausalLM, "losses", poisoned)
        return seen

    return use


def summary() -> dict[str, Any]:
    return json.loads(Path("run/summary.json").read_text())


def rows() -> list[dict[str, Any]]:
    found = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    return [row for row in found if "train/loss" in row]


def spikes_told() -> list[str]:
    return [line.partition("  ")[2] for line in Path("run/train.log").read_text().splitlines() if "Spike" in line]


def test_the_limit_stands_where_a_normal_loss_never_comes() -> None:
    quantiles = [NormalDist(3, 0.2).inv_cdf((i + 0.5) / spikes.WINDOW) for i in range(spikes.WINDOW)]
    assert LossWindow(quantiles).limit() == pytest.approx(3 + 6 * 0.2, rel=0.01)
    spoiled = [loss if i % 4 else 1000.0 for i, loss in enumerate(quantiles)]  # a quarter of them spikes themselves
    assert LossWindow(spoiled).limit() < 3 + 6 * 0.4
    assert LossWindow([3.0] * spikes.WINDOW).limit() == pytest.approx(3.09)
    assert LossWindow([3.0] * (spikes.ENOUGH - 1)).limit() == math.inf
    assert LossWindow([9.0] * 5 + [3.0] * spikes.WINDOW).limit() == pytest.approx(3.09)


def test_warn_tells_the_samples_and_trains_on(poison: Poison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spikes, "ENOUGH", 4)
    seen = poison({6: 50.0})
    assert main([*TINY, "trainer.max_steps=8", "data.batch_size=12"]) == 0
    (line,) = spikes_told()
    assert line.startswith(f"Spike at step 6: loss {rows()[5]['train/loss']:.4f} (median ")
    assert f"Samples {' '.join(map(str, seen[5][:8]))} and 4 more" in line
    assert line.endswith("python -m txtrain audit run 6")
    assert f"Samples of step 6: {' '.join(map(str, seen[5]))}\n" in Path("run/train.log").read_text()
    assert summary()["skipped_steps"] == 0


def test_warn_asks_the_device_only_where_a_row_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, max_steps=10, log_every_n_steps=4)
    asked, mean_losses = [], run.task.mean_losses

    def counted(steps: list[Any]) -> list[float]:
        asked.append(run.trainer.global_step)
        return [math.nan if step == 6 else loss for step, loss in enumerate(mean_losses(steps), start=asked[-1] - 3)]

    run.task.mean_losses = counted
    run.fit()
    assert asked == [1, 4, 8, 10]
    (told,) = (message for message in caplog.messages if message.startswith("Spike"))
    assert told.startswith("Spike at step 6: loss nan")


def test_skip_leaves_the_step_out(poison: Poison) -> None:
    poison({1: math.inf, 4: math.nan})
    assert main([*TINY, "trainer.max_steps=6", "on_spike=skip"]) == 0
    first, second = spikes_told()
    assert first.startswith("Spike at step 1: loss inf, the optimizer step is left out. Samples ")
    assert second.startswith("Spike at step 4: loss nan")
    assert (summary()["skipped_steps"], summary()["steps"], summary()["state"]) == (2, 6, "finished")
    assert all(row["train/loss"] < 6 for row in rows() if row["step"] not in (1, 4))
    assert summary()["validation_loss"] < 6


def test_stop_keeps_weights_that_a_run_goes_on_with(poison: Poison) -> None:
    poison({4: math.nan})
    with pytest.raises(SystemExit) as ended:
        main([*TINY, "trainer.max_steps=6", "on_spike=stop"])
    assert ended.value.code == 3
    outcome = summary()
    assert (outcome["state"], outcome["stopped"], outcome["steps"]) == ("stopped", "on_spike=stop at step 4", 4)
    assert outcome["validation_loss"] < 6
    assert main(["train", "resume=run"]) == 0
    assert (summary()["state"], summary()["steps"], summary()["skipped_steps"]) == ("finished", 6, 1)
    assert [row["step"] for row in rows()] == [1, 2, 3, 4, 5, 6]
    assert all(row["train/loss"] < 6 for row in rows() if row["step"] != 4)


def test_skipping_does_not_go_on_for_ever(poison: Poison) -> None:
    poison(dict.fromkeys(range(3, 100), math.nan))
    with pytest.raises(SystemExit) as ended:
        main([*TINY, "trainer.max_steps=50", "on_spike=skip"])
    assert ended.value.code == 3
    outcome = summary()
    assert (outcome["state"], outcome["steps"], outcome["skipped_steps"]) == ("stopped", 12, 10)
    assert outcome["stopped"] == "10 steps in a row left out by on_spike=skip, the last is 12"


def test_weights_that_are_beyond_help_are_not_saved(poison: Poison, capsys: pytest.CaptureFixture[str]) -> None:
    poison({3: math.nan})
    assert main([*TINY, "trainer.max_steps=4", "save.every=2"]) == 1
    assert "error: the weights are not finite at step 4 (" in capsys.readouterr().err
    assert Path("run/checkpoints/last").resolve().name == "step_00000002.ckpt"


def test_a_resumed_run_judges_by_the_losses_before(poison: Poison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spikes, "ENOUGH", 5)
    poison({8: 50.0})
    assert main([*TINY, "trainer.max_steps=10", "on_spike=skip", "schedule=constant", "run_dir=whole"]) == 0
    assert main([*TINY, "trainer.max_steps=6", "on_spike=skip", "schedule=constant"]) == 0
    assert summary()["skipped_steps"] == 0
    assert main(["train", "resume=run", "trainer.max_steps=10"]) == 0
    whole = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    assert [row["train/loss"] for row in rows()] == [row["train/loss"] for row in whole if "train/loss" in row]
    assert summary()["skipped_steps"] == json.loads(Path("whole/summary.json").read_text())["skipped_steps"] == 1


def test_on_spike_may_change_when_a_run_goes_on(poison: Poison) -> None:
    poison({3: math.nan})
    assert main([*TINY, "trainer.max_steps=2"]) == 0
    assert main(["train", "resume=run", "trainer.max_steps=4", "on_spike=skip"]) == 0
    assert summary()["skipped_steps"] == 1
