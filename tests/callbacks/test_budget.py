"""`trainer.max_time` is a budget of time: what it ends, and what follows it."""

import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning import Callback

from tests.callbacks.tiny import Run
from txtrain.callbacks.budget import Budget
from txtrain.durations import as_typed, max_seconds, seconds_of
from txtrain.errors import UserError
from txtrain.saving import Save, find_checkpoint, read_state
from txtrain.schedule import Cosine
from txtrain.task.causal_lm import CausalLM


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("90s", 90),
        ("10min", 600),
        ("2h", 7200),
        ("1h30min", 5400),
        ("1.5h", 5400),
        ("1d", 86400),
        ("0.5s", 0.5),
        ("00:01:30:00", 5400),
        ("01:00:00:05", 86405),
    ],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == max_seconds(text) == Save(every=text).seconds == seconds
    assert seconds_of(as_typed(seconds)) == seconds


@pytest.mark.parametrize(
    "bad", ["", "soon", "10", "10 parsecs", "30min2h", "-5min", "1:30", "0s", "00:00:00:00", 600, -1, 1.5, {"a": 1}]
)
def test_what_is_none_is_one_line(bad: Any) -> None:
    with pytest.raises(UserError, match=r"^trainer.max_time is .* such as trainer.max_time=\d") as refused:
        max_seconds(bad)
    advised = str(refused.value).rpartition("=")[2]
    assert max_seconds(advised)
    if isinstance(bad, str):
        with pytest.raises(ValueError, match=r"^save.every is .*: give steps"):
            Save(every=bad)


class Steps(Callback):
    """Makes every step take so long, and notes what the budget says after each."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.seen: list[tuple[int, float, float]] = []

    def on_train_batch_start(self, *_: Any) -> None:
        time.sleep(self.seconds)

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        budget = budget_of(trainer)
        self.seen.append((trainer.global_step, budget.left, budget.steps))


def budget_of(trainer: Any) -> Budget:
    return next(callback for callback in trainer.callbacks if isinstance(callback, Budget))


def test_a_budget_tells_how_many_steps_it_is_enough_for(tmp_path: Path) -> None:
    steps = Steps(0.05)
    run = Run(tmp_path, max_steps=-1, max_time="1s", validate=None, extra=[steps], max_epochs=-1).fit()
    last = run.trainer.global_step
    assert 5 <= last <= 20
    _, lefts, expected = zip(*steps.seen, strict=True)
    assert list(lefts) == sorted(lefts, reverse=True)
    assert lefts[-1] == 0 and expected[-1] == last
    assert expected[last // 2] == pytest.approx(last, rel=0.5)


def test_resume_goes_on_with_the_rest(tmp_path: Path) -> None:
    run = Run(tmp_path, max_steps=3, max_time="1.2s", extra=[Steps(0.1)]).fit()
    assert run.trainer.global_step == 3
    checkpoint = find_checkpoint(tmp_path)
    saved = read_state(checkpoint)["callbacks"]["Budget"]
    assert 0.3 <= saved["spent"] < 1.2
    time.sleep(0.3)  # between the two nothing is spent
    steps = Steps(0.1)
    began = time.monotonic()
    resumed = Run(tmp_path, max_steps=10_000, max_time="1.2s", extra=[steps], max_epochs=-1).fit(checkpoint)
    assert time.monotonic() - began < 1.2
    assert 4 <= resumed.trainer.global_step <= 12
    assert steps.seen[0][1] == pytest.approx(1.2 - saved["spent"] - 0.1, abs=0.1)
    finished = resumed.summary.finish(resumed.trainer, resumed.task)
    assert finished["stopped"] == "trainer.max_time=1.2s reached"


def scales(*, total: float, ends: list[float]) -> list[float]:
    """The factors of a task whose budget is expected to be enough for so many steps, at each step."""
    task = CausalLM(
        build_model=None, lora=None, checkpointing=None, optimizer=None, schedule=Cosine(warmup=0.1), loss=None
    )  # type: ignore[arg-type]
    found = []
    for step, end in enumerate(ends):
        task.steps_in_time = lambda end=end: end
        found.append(task._scale(step, total))
    return found


def test_the_schedule_follows_whichever_ends_first() -> None:
    schedule = Cosine(warmup=0.1)
    of = {total: [schedule.scale(step, total) for step in range(total)] for total in (40, 400)}
    assert scales(total=400, ends=[40.2] * 40) == of[40]
    assert scales(total=math.inf, ends=[40.2] * 40) == of[40]
    assert scales(total=400, ends=[5000.0] * 400) == of[400]
    assert scales(total=400, ends=[math.inf] * 400) == of[400]
    assert 0 < scales(total=math.inf, ends=[math.inf])[0] < 1e-3, "the first step of a run without a number of steps"


def test_bar_and_lines_follow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.callbacks import test_progress

    def slow(run_dir: Path, **settings: Any) -> Run:
        return Run(
            run_dir, **settings | {"max_steps": 10_000, "max_time": "1s", "extra": [Steps(0.05)], "max_epochs": -1}
        )

    monkeypatch.setattr(test_progress, "Run", slow)
    lines = test_progress.output(tmp_path / "run", monkeypatch, terminal=False).splitlines()
    steps = [re.match(r"step (\d+)/~?(\d+)  .*  (\d):(\d\d) left", line) for line in lines if line.startswith("step ")]
    found = [(int(match[1]), int(match[2]), 60 * int(match[3]) + int(match[4])) for match in steps if match]
    assert len(found) == len(steps) > 2
    assert all(left <= 1 for _, _, left in found), "never the time of ten thousand steps"
    assert all(end < 100 for _, end, _ in found[1:])
    assert found[-1][0] == found[-1][1]


def _two_ranks(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    trainer = type("Trainer", (), {"global_step": 0, "world_size": 2, "should_stop": False})()
    task = type("Task", (), {})()
    budget = Budget(seconds=0.6)
    budget.setup(trainer, task, "fit")
    budget.on_train_start(trainer, task)
    seen = []
    while not trainer.should_stop:
        time.sleep(0.05 * (1 + rank))  # clocks of their own
        trainer.global_step += 1
        budget.on_train_batch_end(trainer, task, None, None, 0)
        seen.append((trainer.global_step, budget.spent, task.steps_in_time()))
    budget.on_train_end(trainer, task)
    torch.save(seen, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_ranks_agree_at_every_step(tmp_path: Path) -> None:
    mp.start_processes(_two_ranks, (tmp_path,), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert first == second
    assert len(first) > 3
