"""A bar in a terminal, lines elsewhere."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.callbacks.tiny import Run
from txtrain.logger import setup_logging
from txtrain.printable import duration, short


def output(run_dir: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200, highlight=False, soft_wrap=True)
    for module in ("txtrain.logger.lines", "txtrain.callbacks.progress"):
        monkeypatch.setattr(f"{module}.console", console)
    run_dir.mkdir()
    setup_logging(run_dir, 0)
    Run(run_dir, max_steps=6, validate=3, log_every_n_steps=2).fit()
    return stream.getvalue()


def test_plain_lines_when_output_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = output(tmp_path / "run", monkeypatch, terminal=False).splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/6", "2/6", "4/6", "6/6"]
    pattern = r"step 4/6  loss \d\.\d{4}  lr 2\.50e-03  \S+ tokens/s  \d+:\d\d left"
    assert re.fullmatch(pattern, steps[2])
    assert [line.split("  ")[0] for line in lines if line.startswith("validation")] == [
        "validation at step 3",
        "validation at step 6",
    ]
    assert not any("\x1b" in line or "TPU" in line or "Tip" in line for line in lines)


def test_a_bar_in_a_terminal_and_the_lines_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = output(tmp_path / "run", monkeypatch, terminal=True)
    assert "\x1b[" in shown
    assert "tokens/s" in shown
    assert "step 4/6" not in shown
    assert "step 4/6  loss" in (tmp_path / "run/train.log").read_text()


@pytest.mark.parametrize("number, text", [(0.4, "0"), (999, "999"), (12345, "12.3k"), (7.5e6, "7.5M"), (2e9, "2.0G")])
def test_short(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize("seconds, text", [(0.2, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
