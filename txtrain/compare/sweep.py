"""The jobs of a sweep, and the table that compares them."""

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What the table takes from a run's summary.json, and how it heads the column.
RESULTS = {
    "validation_loss": "validation loss",
    "tokens_per_second": "tokens/s",
    "peak_memory_bytes": "peak memory",
    "trainable_parameters": "trainable parameters",
}


@dataclass(eq=False, kw_only=True)
class Job:
    """One run of a sweep.

    Args:
        number: its place in the sweep.
        overrides: what it was started with, value by key.
        directory: its run directory.
        state: waiting, running, failed, or what its summary.json says.
        summary: its summary.json, empty until it has one.
    """

    number: int
    overrides: dict[str, str]
    directory: Path
    state: str = "waiting"
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Everything that the job prints: it begins before the run directory exists and ends with any traceback."""
        return self.directory.with_suffix(".log")

    @property
    def loss(self) -> float:
        """What a sweeper minimises: the validation loss, infinite without one."""
        loss = self.summary.get("validation_loss")
        return loss if loss is not None and math.isfinite(loss) else math.inf

    def end(self, returncode: int) -> None:
        """Take note of how the job's process ended."""
        path = self.directory / "summary.json"
        if path.is_file():
            self.summary = json.loads(path.read_text())
        self.state = "failed" if returncode else self.summary.get("state", "finished")

    def last_words(self) -> str:
        """The last line of the log."""
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")


class Sweep:
    """All jobs of a sweep, over all batches that the sweeper asks for.

    Args:
        directory: holds sweep.csv, and for job N its run directory N and its output N.log.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.jobs: list[Job] = []
        self._made = [folder for folder in (directory, *directory.parents) if not folder.exists()]

    def add(self, number: int, overrides: list[str]) -> Job:
        values = dict(override.split("=", 1) for override in overrides)
        self.jobs.append(Job(number=number, overrides=values, directory=self.directory / str(number)))
        return self.jobs[-1]

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
        return " ".join([str(job.number), *(f"{key}={job.overrides[key]}" for key in self.changed())])

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"job": job.number}
            | {key: job.overrides.get(key) for key in self.changed()}
            | {key: job.summary.get(key) for key in RESULTS}
            | {"state": job.state, "log": job.log}
            for job in self.jobs
        ]

    def write(self) -> None:
        """Write sweep.csv, which is whole after every job."""
        with (self.directory / "sweep.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.rows()[0]))
            writer.writeheader()
            writer.writerows(self.rows())

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
        """Print the table, say where its CSV is, and return the exit code: 1 if any job failed."""
        print(f"\n{self.table()}\n\n{self.directory / 'sweep.csv'}", flush=True)
        return int(any(job.state == "failed" for job in self.jobs))


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key == "validation_loss":
        return f"{value:.4f}"
    if key == "peak_memory_bytes":
        return f"{value / 2**20:,.0f} MiB"
    return f"{value:,.0f}" if key in RESULTS else str(value)
