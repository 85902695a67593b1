"""Kills at each file operation in turn: whatever is left behind, the run goes on, and ends as one left alone."""

import os
import sys
from pathlib import Path

import pytest

from tests import forked

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


def run(script: str, folder: Path) -> str:
    done = forked.run([sys.executable, "-c", script, str(folder)], cwd=folder, env=ENVIRONMENT, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


# A checkpoint that is written a second time, by a system that can exchange two names and by one that cannot.
AGAIN = """
import shutil, sys
from itertools import count
from pathlib import Path
from tests.killing import run_killed
from tests.test_saving import write
from txtrain.saving import checkpoint_name, find_checkpoint, folder as module, publish, read_state, recover

exchanges = module._exchange
for exchange in (exchanges, lambda one, other: False):
    module._exchange = exchange
    for at in count(1):
        run = Path(sys.argv[1]) / f"{exchange.__name__} {at}"
        folder = run / "checkpoints"
        folder.mkdir(parents=True)
        path, partial = write(folder, 4), write(folder, 5, name=checkpoint_name(4) + ".partial")
        killed = run_killed(lambda: publish(partial, path), folder, at=at)
        assert find_checkpoint(run) is not None, (at, sorted(folder.iterdir()))
        recover(folder)
        assert sorted(file.name for file in folder.iterdir()) == [path.name], (at, sorted(folder.iterdir()))
        assert read_state(path)["step"] in (4, 5)
        if not killed:
            break
    print(at, "kills")
"""


def test_a_checkpoint_of_the_same_step_is_never_without_a_whole_one(tmp_path: Path) -> None:
    with_exchange, without = run(AGAIN, tmp_path).splitlines()
    assert int(with_exchange.split()[0]) > 3 and int(without.split()[0]) > 5


# Validations after each second step, the second of which is the best; saved at each third.
TRAINED = """
import os, sys
from itertools import count
from pathlib import Path
from tests.callbacks.test_checkpoints import Losses
from tests.callbacks.tiny import Run
from tests.killing import run_killed
from txtrain.saving import find_checkpoint, recover
from txtrain.trainer import FitLoop

LOSSES = [3.0, 2.0, 2.5, 2.2]

def train(run_dir):
    recover(run_dir / "checkpoints")
    checkpoint = find_checkpoint(run_dir)
    done = int(checkpoint.name[5:13]) // 2 if checkpoint else 0
    run = Run(run_dir, max_steps=8, every=3, keep=1, validate=2, extra=[Losses(*LOSSES[done:])])
    run.trainer.fit_loop.__class__ = FitLoop
    run.fit(checkpoint)

def names(run_dir):
    folder = run_dir / "checkpoints"
    return {file.name: os.readlink(file) if file.is_symlink() else None for file in folder.iterdir()}

root = Path(sys.argv[1])
train(root / "whole")
whole = names(root / "whole")
assert whole == {"step_00000004.ckpt": None, "step_00000008.ckpt": None, "best": "step_00000004.ckpt",
                 "last": "step_00000008.ckpt"}, whole
for at in count(1, 3):
    run_dir = root / str(at)
    run_dir.mkdir()
    killed = run_killed(lambda: train(run_dir), run_dir / "checkpoints", at=at)
    run_killed(lambda: train(run_dir), run_dir, at=-1)
    assert names(run_dir).items() >= whole.items(), (at, names(run_dir))
    if not killed:
        break
print(at, "kills")
"""


@pytest.mark.slow
def test_links_and_what_is_kept_are_those_of_a_run_left_alone(tmp_path: Path) -> None:
    assert int(run(TRAINED, tmp_path).split()[-2]) > 40
