"""Runs whose other processes Lightning starts end wholly, well or not."""

import os
import sys
import time
from pathlib import Path

import pytest

from tests import forked

SCRIPT = Path(__file__).parent / "launched.py"


def launch(tmp_path, *arguments):
    output = tmp_path / "output"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    done = forked.run([sys.executable, SCRIPT, output, *arguments], cwd=tmp_path, env=environment, timeout=300)
    *processes, last = output.read_text().splitlines()
    return done, [int(process) for process in (*processes, last) if process.isdigit()], last


def wait_for_end(processes):
    """Within a minute none of them is left."""
    for _ in range(60):
        if not any(Path(f"/proc/{process}").exists() for process in processes):
            return True
        time.sleep(1)
    return False


@pytest.mark.slow
def test_two_runs_in_a_row_leave_nothing_behind(tmp_path):
    done, processes, last = launch(tmp_path, "ddp")
    assert done.returncode == 0, done.stderr
    assert last == "world sizes 2 2"
    assert len(set(processes)) == 3  # the parent, and a child for each run
    assert wait_for_end(processes)
    assert "destroy_process_group" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_failing_process_ends_the_other(tmp_path, rank):
    done, processes, _ = launch(tmp_path, "ddp", str(rank))
    assert done.returncode == 1
    assert f"rank {rank} fails on purpose" in done.stderr
    assert len(processes) == 2
    assert wait_for_end(processes)
