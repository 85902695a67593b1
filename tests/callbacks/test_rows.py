"""metrics.jsonl, whatever happens to its disk or its process."""

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forked
from tests.callbacks.tiny import Run
from txtrain.callbacks.rows import Rows
from txtrain.saving import find_checkpoint

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("tail", ["", '{"st', '{"step": 3}\n{"st', "\0\0\0\0\n", '{"step": 3}\n{"step": 4}\n'])
def test_cutting_back_keeps_whole_rows_up_to_the_step(tmp_path: Path, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "a": 1}\n{"step": 2}\n' + tail)
    Rows(path).cut_back(2)
    assert path.read_text() == '{"step": 1}\n{"step": 2, "a": 1}\n{"step": 2}\n'


def test_each_damaged_byte_costs_its_row_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step}, "train/loss": 2.{step}}}' for step in range(1, 8)]
    content = "".join(f"{line}\n" for line in lines).encode()
    for position in range(len(content)):
        for byte in (0, 0xFF, content[position] ^ 1, *b'\n\r{}"x'):
            damaged = bytearray(content)
            damaged[position] = byte
            path.write_bytes(damaged)
            Rows(path).cut_back(6)
            row = content[:position].count(b"\n")
            kept = path.read_text().splitlines()
            assert [line for line in lines[:6] if line not in kept] in ([], lines[row : row + 1]), (position, byte)
            assert all(isinstance(found["step"], int) for found in Rows(path).read())
    assert "cannot be read and are left out" in caplog.text


@pytest.mark.parametrize("damage", ["[]", "null", "3", '{"step": null}', '{"loss": 1}', "[" * 100_000, "\0"])
def test_a_line_that_is_no_row_goes(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{damage}\n{{"step": 2}}\n{{"step": 3}}\n')
    Rows(path).cut_back(2)
    assert steps(path) == [1, 2]


# A process whose files may not grow beyond a few rows has, to all it can see, a full disk.
FULL = """
import resource, signal, sys
from pathlib import Path
from txtrain.callbacks.rows import Rows
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
rows = Rows(Path(sys.argv[1]))
for step in range(1, 11):
    limit = 100 if step < 8 else -1
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    rows.append({"step": step, "text": "x" * 10})
    whole = Path(sys.argv[1]).read_bytes()
    assert whole.endswith(b"}\\n"), whole
"""


def test_a_full_disk_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    run = forked.run([sys.executable, "-c", FULL, str(path)], cwd=tmp_path, env=ENVIRONMENT, timeout=120)
    assert run.returncode == 0, run.stderr
    assert steps(path) == list(range(1, 11))
    assert run.stderr.count("cannot be written (File too large)") == 1


class Replaced(Rows):
    """A run directory that is a plain file between two steps."""

    def append(self, row: Any) -> None:
        folder, away = self.path.parent, self.path.parent.with_name("away")
        if row["step"] == 2:
            folder.rename(away)
            folder.write_text("")
        elif row["step"] == 5:
            folder.unlink()
            away.rename(folder)
        super().append(row)


def test_a_lost_folder_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    run = Run(tmp_path / "run", max_steps=6)
    run.summary.metrics.rows = Replaced(tmp_path / "run/metrics.jsonl")
    run.fit()
    assert steps(tmp_path / "run/metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    assert [line for line in caplog.messages if "metrics.jsonl" in line] == [
        f"{tmp_path}/run/metrics.jsonl cannot be written (Not a directory): rows wait in memory.",
        f"{tmp_path}/run/metrics.jsonl is written again, with the 3 rows that waited.",
    ]


# Killed in the middle of writing the row of step 7, after a checkpoint at step 4.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.callbacks.tiny import Run
from txtrain.callbacks import rows

def torn(path, data, whole=rows._append):
    if b'"step": 7,' in data:
        whole(path, data[:20])
        os.kill(os.getpid(), signal.SIGKILL)
    whole(path, data)

rows._append = torn
Run(Path(sys.argv[1]), max_steps=9, validate=3, every=4).fit()
"""


def test_a_run_killed_within_a_row_has_each_row_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    assert forked.run(command, cwd=tmp_path, env=ENVIRONMENT, timeout=120).returncode == -signal.SIGKILL
    assert (tmp_path / "killed/metrics.jsonl").read_bytes()[-20:].startswith(b'{"step": 7, ')
    checkpoint = find_checkpoint(tmp_path / "killed")
    assert checkpoint is not None
    Run(tmp_path / "killed", max_steps=9, validate=3, every=4).fit(checkpoint)
    Run(tmp_path / "whole", max_steps=9, validate=3, every=4).fit()
    killed, whole = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("killed", "whole")
    )
    assert [sorted(row) for row in killed] == [sorted(row) for row in whole]
    changing = ("train/tokens_per_second", "train/memory_bytes", "seconds")
    assert [{key: row[key] for key in row if key not in changing} for row in killed] == [
        {key: row[key] for key in row if key not in changing} for row in whole
    ]
