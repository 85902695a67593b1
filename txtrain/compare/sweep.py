"""The jobs of a sweep, what became of them, and the table that compares them."""

import csv
import json
import math
import os
import signal
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from txtrain.config import resumable
from txtrain.errors import UserError
from txtrain.records import JOBS, SummaryRecord, checked, read_json, read_record

# What the table takes from a run's summary.json, and how it heads the column.
RESULTS = {
    "validation_loss": "validation loss",
    "tokens_per_second": "tokens/s",
    "images_per_second": "images/s",
    "frames_per_second": "frames/s",
    "peak_memory_bytes": "peak memory",
    "trainable_parameters": "trainable parameters",
}
SHOWN = 5  # sweeps that a message names
SPEEDS = tuple(key for key in RESULTS if key.endswith("_per_second"))

# How a process ends that was told to, or that nobody let end: it did nothing wrong, so it goes on when the sweep does.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGKILL)
STOPPED = {code for number in SIGNALS for code in (-number, 128 + number)}


@dataclass(eq=False, kw_only=True)
class Job:
    """One run of a sweep.

    Args:
        number: its place in the sweep.
        overrides: what it was started with, value by key.
        directory: its run directory.
        state: waiting, running, interrupted, failed, or what its summary.json says.
        summary: its summary.json, empty until it has one.
        slurm: the number of its SLURM job, if it is one.
    """

    number: int
    overrides: dict[str, str]
    directory: Path
    state: str = "waiting"
    summary: dict[str, Any] = field(default_factory=dict)
    slurm: str | None = None

    @property
    def log(self) -> Path:
        """Everything that the job prints: it begins before the run directory exists and ends with any traceback."""
        return self.directory.with_suffix(".log")

    @property
    def loss(self) -> float:
        """What a sweeper minimises: the validation loss, infinite without one."""
        loss = self.summary.get("validation_loss")
        return loss if loss is not None and math.isfinite(loss) else math.inf

    @property
    def done(self) -> bool:
        """Whether nothing is left to do, unless failed jobs are to be tried again."""
        return self.state not in ("waiting", "running", "interrupted")

    def begin(self) -> None:
        """Forget what the job's process of before left, so that what is found later is this one's."""
        (self.directory / "summary.json").unlink(missing_ok=True)
        self.state, self.summary = "running", {}

    def end(self, returncode: int | None) -> None:
        """Take note of how the job's process ended; None: nobody saw it, so only its summary.json can tell."""
        self._read_summary()
        told = self.summary.get("state")
        if returncode == 0:
            self.state = told or "finished"
        elif returncode is None:
            self.state = told or "interrupted"
        else:
            self.state = "interrupted" if told == "interrupted" or returncode in STOPPED else "failed"

    def look(self) -> None:
        """Take note of what the job's process of before left, now that it has ended."""
        if self.state == "running":
            self.end(None)
        else:
            self._read_summary()
            if self.state != "failed":
                self.state = self.summary.get("state", "waiting" if self.done else self.state)

    def last_words(self) -> str:
        """The last line of the log that is the job's own."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        own = (line.strip() for line in reversed(lines) if not line.startswith(("srun: ", "slurmstepd: ")))
        return next(filter(None, own), "nothing was printed")

    def _read_summary(self) -> None:
        path = self.directory / "summary.json"
        try:
            self.summary = read_record(path, SummaryRecord).model_dump(exclude_unset=True)
        except UserError:  # none was written, or what a loss of power leaves: the job is not done
            self.summary = {}


class Sweep:
    """All jobs of a sweep, over all batches that the sweeper asks for and over all times that it is run.

    Args:
        directory: holds sweep.csv, jobs.json, and for job N its run directory N and its output N.log.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.go_on: str | None = None  # the command line that goes on with it
        self._made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
        self.jobs = self._read()
        self._earlier = list(self.jobs)  # those that no batch has asked for yet
        self._own = self.changed()  # before any of them is asked for with other values

    def _read(self) -> list[Job]:
        """The jobs of an earlier run of the same sweep."""
        path, do = self.directory / "jobs.json", "name another hydra.sweep.dir"
        if not os.path.lexists(path):
            return []
        found = checked(path, read_json(path, do=do), JOBS, do=do)
        return [
            Job(number=number, directory=self.directory / str(number), **job.model_dump())
            for number, job in enumerate(found)
        ]

    def add(self, overrides: list[str], *, number: int | None = None) -> Job:
        """The job with these overrides: the one of an earlier run of the sweep, or a new one.

        Args:
            overrides: what it is to be started with.
            number: its place in a grid; None if the sweeper thinks of its jobs as it goes.

        Raises:
            UserError: the job in that place was another one.
        """
        values = dict(override.split("=", 1) for override in overrides)
        if number is None:
            job = next((job for job in self._earlier if job.overrides == values), None)
        else:
            job = self.jobs[number] if number < len(self.jobs) else None
        if job is None:
            job = Job(number=len(self.jobs), overrides=values, directory=self.directory / str(len(self.jobs)))
            self.jobs.append(job)
            return job
        if differing := self._differing(job.overrides, values):
            raise UserError(
                f"hydra.sweep.dir={self.directory} has another sweep, whose job {job.number} was started with "
                f"{differing}: type what that sweep was started with, or another hydra.sweep.dir"
            )
        if not job.done:
            job.overrides = values
        self._earlier.remove(job)
        return job

    def _differing(self, before: dict[str, str], now: dict[str, str]) -> str:
        """What a job was started with and may not change: what it trains, how long, and what tells it from others."""
        keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        fixed = [
            key for key in keys if key in self._own or key.startswith("trainer.max_") or not resumable(key.lstrip("+~"))
        ]
        return ", ".join(f"{key}={before.get(key, 'its default')}" for key in fixed)

    def _asked(self) -> list[Job]:
        """Without those that only an earlier run asked for, such as what Optuna had proposed when it was killed."""
        return [job for job in self.jobs if job not in self._earlier]

    def discard_unused(self) -> None:
        """Remove the folders that the sweeper made, if a mistake was found before any job began."""
        if not self.jobs and self.directory.is_dir():
            (self.directory / "multirun.yaml").unlink(missing_ok=True)
            for folder in self._made:
                folder.rmdir()

    def changed(self) -> list[str]:
        """The keys that tell the jobs apart."""
        keys = dict.fromkeys(key for job in self.jobs for key in job.overrides)
        return [key for key in keys if len(self.jobs) == 1 or len({job.overrides.get(key) for job in self.jobs}) > 1]

    def title(self, job: Job) -> str:
        """The job's number and what is its own."""
        own = (f"{key}={job.overrides[key]}" for key in self.changed() if key in job.overrides)
        return " ".join([str(job.number), *own])

    def rows(self) -> list[dict[str, Any]]:
        """What sweep.csv says of each job; of speeds, those of the units that some job counts."""
        counted = {key for key in SPEEDS if any(key in job.summary for job in self.jobs)} or {SPEEDS[0]}
        results = [key for key in RESULTS if key not in SPEEDS or key in counted]
        return [
            {"job": job.number}
            | {key: job.overrides.get(key) for key in self.changed()}
            | {key: job.summary.get(key) for key in results}
            | {"state": job.state, "log": job.log}
            for job in self.jobs
        ]

    def write(self) -> None:
        """Write sweep.csv and jobs.json, which are whole at any moment."""
        table = StringIO(newline="")
        writer = csv.DictWriter(table, fieldnames=list(self.rows()[0]))
        writer.writeheader()
        writer.writerows(self.rows())
        jobs = [{key: getattr(job, key) for key in ("overrides", "state", "slurm")} for job in self.jobs]
        for name, text in (("sweep.csv", table.getvalue()), ("jobs.json", json.dumps(jobs, indent=2) + "\n")):
            partial = self.directory / f"{name}.partial"
            partial.write_text(text, newline="")
            os.replace(partial, self.directory / name)

    def table(self) -> str:
        """The jobs in aligned columns; only failed ones name their log."""
        rows = self.rows()
        lines = [[RESULTS.get(key, key) for key in rows[0] if key != "log"]]
        for row in rows:
            log = row.pop("log")
            row["state"] += f", see {log}" if row["state"] == "failed" else ""
            lines.append([_shown(key, value) for key, value in row.items()])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        return "\n".join("  ".join(cells).rstrip() for cells in aligned)

    def report(self) -> int:
        """Print the table, where its CSV is and how to go on, and return the exit code: 1 if a job is not finished."""
        print(f"\n{self.table()}\n\n{self.directory / 'sweep.csv'}", flush=True)
        self.tell_how_to_go_on()
        return int(any(job.state == "failed" or not job.done for job in self._asked()))

    def tell_how_to_go_on(self) -> None:
        """Print the command line that does what is left, if anything is."""
        if any(not job.done for job in self._asked()):
            print(f"go on: {self.go_on}", flush=True)
        elif any(job.state == "failed" for job in self._asked()):
            print(f"try the failed jobs again: {self.go_on} hydra.launcher.retry_failed=true", flush=True)


def list_sweeps(folder: Path) -> list[Path]:
    """The sweeps in a folder of runs or of sweeps, newest first."""
    found = [*folder.glob("sweeps/*/jobs.json"), *folder.glob("*/jobs.json")]
    return [path.parent for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)]


def check_not_only_sweeps(folder: Path, *, key: str = "") -> None:
    """Refuse a folder that is named as a model and holds sweeps but no run.

    Args:
        folder: that was named.
        key: how a model is typed, such as `init_from=`.

    Raises:
        UserError: it is one. The line lists its sweeps.
    """
    if sweeps := list_sweeps(folder):
        named = ", ".join(map(str, sweeps[:SHOWN]))
        more = f" and {len(sweeps) - SHOWN} more" if len(sweeps) > SHOWN else ""
        together = "" if key else f", or type txtrain eval {sweeps[0]} for all of its jobs"
        raise UserError(
            f"{key}{folder} holds no run, only sweeps ({named}{more}): "
            f"name a job, such as {key}{sweeps[0] / '0'}{together}"
        )


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "validation_loss":
        return f"{value:#.6g}"  # differences between techniques are small
    if key == "peak_memory_bytes":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,.0f}" if key in RESULTS else str(value)
