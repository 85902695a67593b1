"""Where a run reports to."""

import csv
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import Logger

from tests.callbacks.tiny import Run
from tests.offline_wandb import read
from txtrain import logger as loggers
from txtrain.errors import UserError
from txtrain.logger import choose_mode, chosen, close_loggers, setup_logging
from txtrain.saving import find_checkpoint

pytestmark = pytest.mark.usefixtures("no_wandb_account")

CONFIG = {"name": "gpt", "model": {"dim": 16, "norms": ["a", "b"]}, "resume": None}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def start(run_dir: Path, **settings: Any) -> list[Logger]:
    return chosen(run_dir=run_dir, name="gpt", config=CONFIG, group="sweep 1", job="norm=pre", wandb=True, **settings)


def segments(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize(
    "environment, mode",
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
        ({"WANDB_DISABLED": "true", "WANDB_MODE": "offline", "WANDB_API_KEY": "k"}, "disabled"),
        ({"WANDB_DISABLED": "False", "WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_DISABLED": "", "WANDB_MODE": ""}, "offline"),
    ],
)
def test_online_only_with_a_key_or_on_request(environment: dict[str, str], mode: str) -> None:
    assert choose_mode(environment)[0] == mode


def test_a_key_in_netrc_counts_for_its_host(tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password k\n")
    assert choose_mode({})[0] == "online"
    assert choose_mode({"WANDB_BASE_URL": "https://wandb.example.org"})[0] == "offline"


def test_a_mode_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"^WANDB_MODE is onlin: set it to online, offline or disabled"):
        choose_mode({"WANDB_MODE": "onlin"})
    with pytest.raises(UserError, match=r"^WANDB_DISABLED is maybe: set it to true or false"):
        choose_mode({"WANDB_DISABLED": "maybe"})


def test_a_run_without_a_key_is_logged_offline_whole(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    environment = dict(os.environ)
    run = Run(run_dir, max_steps=4, validate=2, loggers=start(run_dir, project="mine")).fit()
    close_loggers(run.trainer.loggers)
    found = read(segments(run_dir)[0])
    assert (found.name, found.project, found.group, found.exit_code) == ("norm=pre", "mine", "sweep 1", 0)
    assert {key: found.config[key] for key in CONFIG} == CONFIG
    by_step = {row["_step"]: row for row in found.history}
    assert sorted(by_step) == [1, 2, 3, 4]
    assert by_step[4].keys() >= {"train/loss", "train/lr", "train/grad_norm", "train/tokens", "validation/loss"}
    assert by_step[4]["samples/nrows"] == 2
    assert os.environ == environment
    assert f"wandb sync {segments(run_dir)[0].parent}" in caplog.messages[-1]


def test_a_resumed_run_goes_on_as_the_same_one(run_dir: Path) -> None:
    for max_steps in (2, 4):
        run = Run(run_dir, max_steps=max_steps, loggers=start(run_dir)).fit(find_checkpoint(run_dir))
        close_loggers(run.trainer.loggers)
    first, second = map(read, segments(run_dir))
    assert first.id == second.id == (run_dir / "wandb_id").read_text()
    assert [row["_step"] for row in first.history] == [1, 2]
    assert [row["_step"] for row in second.history] == [3, 4]


@pytest.fixture
def deaf_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("reachable", [False, True])
def test_a_server_that_does_not_answer_costs_seconds_and_no_data(
    run_dir: Path,
    reachable: bool,
    deaf_server: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", deaf_server if reachable else "http://127.0.0.1:9")
    logger = start(run_dir, timeout=3)
    worker = threading.Thread(target=lambda: logger[0].log_metrics({"train/loss": 1.0}, step=1), daemon=True)
    worker.start()
    worker.join(timeout=60)
    assert not worker.is_alive()
    close_loggers(logger)
    assert "W&B cannot be used online" in caplog.text
    assert "wandb:" not in "".join(capfd.readouterr())
    assert read(segments(run_dir)[-1]).history[0]["train/loss"] == 1.0


def test_disabled_writes_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = start(run_dir)
    logger[0].log_metrics({"train/loss": 1.0}, step=1)
    close_loggers(logger)
    assert not segments(run_dir)


def test_what_the_environment_says_is_used(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as nothing was typed: the project and the like of a config are filled in before."""
    said = {"RUN_ID": "mine", "NAME": "my name", "RUN_GROUP": "ours", "NOTES": "n", "PROJECT": "p"}
    for name, value in said.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    made = chosen(run_dir=run_dir, name="gpt", config=CONFIG, wandb=True, project="p")
    close_loggers(Run(run_dir, max_steps=2, loggers=made).fit().trainer.loggers)
    found = read(segments(run_dir)[0])
    assert (found.id, found.name, found.group, found.project) == ("mine", "my name", "ours", "p")
    assert (run_dir / "wandb_id").read_text() == "mine"


def test_what_is_overruled_of_the_environment_is_told(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = {"RUN_ID": "mine", "NAME": "n", "RUN_GROUP": "g", "PROJECT": "p", "ENTITY": "e", "TAGS": "a,b", "DIR": "/d"}
    for name, value in (said | {"RESUME": "must", "CONSOLE": "wrap", "SILENT": "1"}).items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    logger = start(run_dir, project="mine", entity="me", tags=["a"])  # a job of a sweep
    logger[0].log_metrics({"train/loss": 1.0}, step=1)
    close_loggers(logger)
    found = read(segments(run_dir)[0])
    assert (found.name, found.project, found.group) == ("norm=pre", "mine", "sweep 1")
    assert found.id == (run_dir / "wandb_id").read_text() != "mine"
    told = "WANDB_PROJECT=p (mine), WANDB_ENTITY=e (me), WANDB_TAGS=a,b (a), WANDB_NAME=n (norm=pre), "
    told += f"WANDB_RUN_ID=mine ({found.id}), WANDB_RUN_GROUP=g (sweep 1), WANDB_DIR=/d ({run_dir}), "
    told += "WANDB_CONSOLE=wrap (off), WANDB_RESUME=must (allow)"
    assert [line for line in caplog.messages if line.startswith("W&B: overruled")] == [
        f"W&B: overruled of the environment, with what holds instead: {told}"
    ]


def test_the_run_of_an_agent_is_the_run(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A sweep of W&B gives its jobs their ids; what goes on outside of it goes on as that run."""
    caplog.set_level(logging.INFO)
    agent = {"WANDB_SWEEP_ID": "swp12345", "WANDB_RUN_ID": "agentrun", "WANDB_PROJECT": "swept"}
    for max_steps in (2, 4):
        for name, value in agent.items():
            monkeypatch.setenv(name, value) if max_steps == 2 else monkeypatch.delenv(name)
        made = chosen(run_dir=run_dir, name="gpt", config=CONFIG, wandb=True, project="swept")
        close_loggers(Run(run_dir, max_steps=max_steps, loggers=made).fit(find_checkpoint(run_dir)).trainer.loggers)
        import wandb

        wandb.teardown()
    first, second = map(read, segments(run_dir))
    assert first.id == second.id == "agentrun" == (run_dir / "wandb_id").read_text()
    assert first.project == second.project == "swept"
    assert [[row["_step"] for row in segment.history] for segment in (first, second)] == [[1, 2], [3, 4]]
    told = [record.getMessage() for record in caplog.records if record.name.startswith("txtrain.")]
    assert told[-1].endswith(f"wandb sync {segments(run_dir)[0].parent} {segments(run_dir)[1].parent}")
    assert "overruled" not in caplog.text
    assert "wandb:" not in "".join(capfd.readouterr())


def test_a_table_has_a_line_for_each_row(run_dir: Path) -> None:
    made = chosen(run_dir=run_dir, name="gpt", config=CONFIG, csv=True)
    run = Run(run_dir, max_steps=4, validate=2, loggers=made).fit()
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    table = list(csv.DictReader((run_dir / "metrics.csv").read_text().splitlines()))
    assert [{name: float(value) for name, value in line.items() if value} for line in table] == rows
    assert run.trainer.loggers[0].name == "csv"


def test_tensorboard_files_hold_metrics_and_samples(run_dir: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = chosen(run_dir=run_dir, name="gpt", config=CONFIG, tensorboard=True)
    close_loggers(Run(run_dir, max_steps=4, validate=4, loggers=made).fit().trainer.loggers)
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("validation/loss")] == [4]
    assert "samples/text_summary" in events.Tags()["tensors"]


def test_no_logger() -> None:
    assert chosen(run_dir=Path("run"), name="gpt", config=CONFIG) == []


@pytest.fixture
def restored_logging() -> Iterator[None]:
    logging.captureWarnings(False)  # else an earlier test's capture is taken for this one's
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False  # by Optuna's database in an earlier test
    yield
    setup_logging(None, 0)
    logging.captureWarnings(False)
    for name in ("txtrain", *loggers.LIBRARIES):
        logging.getLogger(name).propagate = True


SPEAKING = """
import logging, sys, warnings
from pathlib import Path
import lightning
from txtrain.logger import setup_logging

logging.getLogger("DeepSpeed").addHandler(logging.StreamHandler())
logging.getLogger("DeepSpeed").disabled = True
setup_logging(Path(sys.argv[1]), 0)
logging.getLogger("txtrain.train").info("ours")
logging.getLogger("lightning.pytorch.utilities.rank_zero").info("GPU available: False")
logging.getLogger("DeepSpeed").warning("theirs")
warnings.warn("a warning", UserWarning)
"""


def test_libraries_speak_in_the_log_only(run_dir: Path) -> None:
    """In a process of its own, since loggers are shared by all that a process does."""
    run_dir.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", SPEAKING, run_dir], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "ours" in done.stdout
    assert not any(word in done.stdout + done.stderr for word in ("GPU", "theirs", "a warning"))
    written = (run_dir / "train.log").read_text()
    assert [word for word in ("ours", "GPU", "theirs", "a warning") if word not in written] == []


def test_train_log_has_the_run_and_nothing_of_what_wandb_does_inside(run_dir: Path, restored_logging: None) -> None:
    setup_logging(run_dir, 0)
    logging.getLogger("wandb").setLevel(logging.DEBUG)  # as W&B does where it is imported first here
    logging.getLogger("txtrain.train").info("the run")
    logger = start(run_dir)
    logger[0].log_metrics({"train/loss": 1.0}, step=1)
    logging.getLogger("wandb").warning("a warning of theirs")
    close_loggers(logger)
    lines = [line.partition("  ")[2] for line in (run_dir / "train.log").read_text().splitlines()]
    assert lines[:2] == ["the run", "a warning of theirs"]
    assert len(lines) == 3 and lines[2].startswith("W&B: logged offline")


def test_other_ranks_are_silent(run_dir: Path, restored_logging: None, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(run_dir, 1)
    logging.getLogger("txtrain.train").warning("twice")
    assert "twice" not in capsys.readouterr().out
    assert not (run_dir / "train.log").exists()
