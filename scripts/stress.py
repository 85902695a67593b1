"""Kills a run at random moments, half of them during a save, resumes it each time, and compares how it ends.

    python scripts/stress.py --kills 50
    python scripts/stress.py --kills 10 trainer.devices=2 strategy=deepspeed_zero2 save.background=true

A run that reaches its end must have the weights, optimizer state and metrics of one that was never killed; then the
next one begins. Takes about ten seconds a kill.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from txtrain.run import RunDirectory
from txtrain.saving import PARTIAL, Reader, checkpoint_step, find_checkpoint

ROOT = Path(__file__).parent.parent
RUN = [
    "data=text",
    f"data.path={ROOT / 'tests/golden/text.txt'}",
    "tokenizer=byte",
    *("model.num_layers=2", "model.dim=64", "model.num_heads=2", "model.dropout=0.1"),
    *("data.seq_len=64", "data.batch_size=8", "data.micro_batch_size=2"),
    *("trainer.accelerator=cpu", "trainer.devices=1", "trainer.max_steps=300", "trainer.log_every_n_steps=1"),
    *("trainer.val_check_interval=50", "trainer.limit_val_batches=2", "save.every=3", "logger=none"),
]
MEASURED = ("train/tokens_per_second", "train/memory_bytes", "seconds")


class Stress:
    """One series of kills.

    Args:
        folder: where runs are written.
        overrides: what the user typed, on top of `RUN`.
        seed: of the moments.
    """

    def __init__(self, *, folder: Path, overrides: list[str], seed: int) -> None:
        self.folder, self.overrides, self.random = folder, overrides, random.Random(seed)
        self.kills = self.during_a_save = self.runs = 0

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """The command in a session of its own, so that its ranks can be killed with it."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        with (self.folder / "output.txt").open("a") as output:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=output, start_new_session=True
            )

    def wait_and_kill(self, process: subprocess.Popen[bytes], run_dir: Path) -> bool:
        """Whether it was killed: at a random time after it began to train, or in the middle of one of its saves."""
        checkpoints, metrics = run_dir / "checkpoints", run_dir / "metrics.jsonl"
        before = metrics.stat().st_mtime_ns if metrics.exists() else 0
        while process.poll() is None and (not metrics.exists() or metrics.stat().st_mtime_ns == before):
            time.sleep(0.01)
        wait, in_a_save = self.random.uniform(0, 3), self.random.random() < 0.5
        time.sleep(wait)
        while in_a_save and process.poll() is None and not list(checkpoints.glob(f"*{PARTIAL}")):
            time.sleep(0.0005)
        time.sleep(self.random.uniform(0, 0.004))
        if process.poll() is not None:
            return False
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self.kills += 1
        self.during_a_save += bool(list(checkpoints.glob(f"*{PARTIAL}")))
        return True

    def run(self, kills: int) -> None:
        """Until so many kills were made, and the run at hand has ended."""
        whole = self.folder / "whole"
        assert self.start(*RUN, *self.overrides, f"run_dir={whole}").wait() == 0, self.output()
        while self.kills < kills:
            self.runs += 1
            run_dir = self.folder / str(self.runs)
            process = self.start(*RUN, *self.overrides, f"run_dir={run_dir}")
            while self.kills < kills and self.wait_and_kill(process, run_dir):
                found = find_checkpoint(run_dir)
                if found and RunDirectory(run_dir).finished_at(checkpoint_step(found)):
                    print(f"kill {self.kills}: the run had told its outcome", flush=True)
                    break
                print(f"kill {self.kills}: goes on from {found.name if found else 'the beginning'}", flush=True)
                if found is None:
                    shutil.rmtree(run_dir)
                again = [f"resume={run_dir}"] if found else [*RUN, *self.overrides, f"run_dir={run_dir}"]
                process = self.start(*again)
            else:
                assert process.wait() == 0, self.output()
            assert_same(whole, run_dir)
            print(f"run {self.runs} ended as the one that was never killed", flush=True)

    def output(self) -> str:
        return (self.folder / "output.txt").read_text()[-3000:]


def assert_same(whole: Path, parts: Path) -> None:
    """Bit for bit: weights, optimizer state, metrics but for times and memory."""
    readers = [Reader(path / "checkpoints/last") for path in (whole, parts)]
    names = [sorted(reader.names()) for reader in readers]
    assert names[0] == names[1]
    assert [name for name in names[0] if not torch.equal(readers[0][name], readers[1][name])] == []
    rows = [[json.loads(line) for line in (path / "metrics.jsonl").open()] for path in (whole, parts)]
    same = [[{key: row[key] for key in row if key not in MEASURED} for row in part] for part in rows]
    assert same[0] == same[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stress = Stress(folder=Path(folder), overrides=arguments.overrides, seed=arguments.seed)
        stress.run(arguments.kills)
    print(
        f"{stress.kills} kills, {stress.during_a_save} of them during a save: every one was followed by a whole "
        f"checkpoint, and {stress.runs} runs ended bit for bit as the one that was never killed"
    )


if __name__ == "__main__":
    main()
