"""A bar in a terminal, lines elsewhere."""

import io
import logging
import re
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress as Bar

from tests.callbacks.tiny import Run
from txtrain import terminal
from txtrain.logger import setup_logging
from txtrain.printable import duration, short


def output(run_dir: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=200, highlight=False, soft_wrap=True)
    for module in ("txtrain.logger.lines", "txtrain.callbacks.progress", "txtrain.terminal"):
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


def test_validation_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    update = Bar.update
    monkeypatch.setattr(
        Bar,
        "update",
        lambda self, task, **values: (shown.append(values.get("description")), update(self, task, **values)),
    )
    output(tmp_path / "run", monkeypatch, terminal=True)
    texts = [text for text in shown if text]
    assert "validating 1/2" in texts and "validating 2/2" in texts
    after = texts[texts.index("validating 2/2") + 1]
    assert after.startswith("loss"), "what training showed stands there again"


def test_the_best_validation_and_the_result_have_a_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def coloured(text: str, word: str) -> list[str]:
        return [line for line in text.splitlines() if word in line and "\x1b[32m" in line.split(word)[0]]

    shown = output(tmp_path / "run", monkeypatch, terminal=True)
    assert len(coloured(shown, "validation at step 3")) == 1
    monkeypatch.setenv("NO_COLOR", "1")
    plain = output(tmp_path / "other", monkeypatch, terminal=True)
    assert not coloured(plain, "validation at step 3")
    assert "validation at step 3" in plain


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("shown", [True, False])
def test_a_phase_is_shown_on_standard_error_if_that_is_a_terminal(shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever standard output is, which holds the result."""
    out, err = (io.StringIO(), Terminal()) if shown else (Terminal(), io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with terminal.status_on_stderr(), terminal.Phase("loading the model"):
        time.sleep(0.2)
    assert (out.getvalue(), "loading the model" in err.getvalue()) == ("", shown)


def test_a_quiet_phase_is_named_after_two_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(terminal, "SILENCE", 0.05)
    with terminal.Phase("loading the model"):
        assert not caplog.messages
        time.sleep(0.3)
    with terminal.Phase("reading the config"):
        pass
    time.sleep(0.2)
    assert caplog.messages == ["loading the model ..."]
