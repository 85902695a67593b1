"""Offline files of W&B, cut back; another reader says what is left."""

import random
from pathlib import Path

import pytest
import wandb as client

from tests.logger.killed import new_loggers
from tests.offline_wandb import read
from txtrain.logger import close_loggers
from txtrain.logger.segments import cut_back

STEPS = 12


@pytest.fixture(scope="module")
def segment(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Rows from a few bytes to more than two blocks, written by W&B."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        run_dir = tmp_path_factory.mktemp("run")
        logger = new_loggers(run_dir, "wandb")
        for step in range(1, STEPS + 1):
            logger[0].log_metrics({"text": "x" * random.Random(step).choice([1, 3000, 32_740, 70_000])}, step=step)
        close_loggers(logger)
        client.teardown()
    (path,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    assert read(path).exit_code == 0
    return path.read_bytes()


def left(path: Path) -> list[int]:
    return [row["_step"] for row in read(path, timeout=0).history]


def test_whatever_is_logged_later_goes(segment: bytes, tmp_path: Path) -> None:
    path = tmp_path / "run.wandb"
    for step in range(STEPS):
        path.write_bytes(segment)
        assert cut_back(path, step) == step
        assert left(path) == list(range(1, step + 1))
        assert segment.startswith(path.read_bytes())
        assert read(path, timeout=0).project == "txtrain"
    path.write_bytes(segment)
    assert cut_back(path, STEPS) == STEPS
    assert path.read_bytes() == segment


def test_a_torn_end_goes_wherever_it_is_torn(segment: bytes, tmp_path: Path) -> None:
    path, draw = tmp_path / "run.wandb", random.Random(0)
    for size in [*range(1000, 1200, 7), *(draw.randrange(1000, len(segment)) for _ in range(100))]:
        for garbage in (b"", bytes(50), draw.randbytes(50)):
            path.write_bytes(segment[:size] + garbage)
            last = cut_back(path, STEPS)
            assert left(path) == list(range(1, last + 1))
            assert segment.startswith(path.read_bytes())
            again = path.read_bytes()
            assert cut_back(path, STEPS) == last and path.read_bytes() == again


def test_what_holds_nothing_whole_goes(segment: bytes, tmp_path: Path) -> None:
    for size in (0, 5, 7, 20):
        path = tmp_path / "run.wandb"
        path.write_bytes(segment[:size])
        assert cut_back(path, 5) == 0
        assert not path.exists()
