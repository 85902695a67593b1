"""A table of the metrics, which spreadsheets open."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyExperiment
from lightning.pytorch.utilities import rank_zero_only

from txtrain.logger.endure import Enduring, Row, with_nan
from txtrain.saving import PARTIAL


class Table(Enduring, Logger):
    """`metrics.csv` of the run directory: a line for each row of metrics.jsonl, a column for each metric.

    Args:
        run_dir: holds the file.
    """

    label = "metrics.csv"

    def __init__(self, *, run_dir: Path) -> None:
        super().__init__()
        self.path = run_dir / "metrics.csv"
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    def describe(self) -> str:
        return self.name

    @property
    def version(self) -> str:
        return ""

    @property
    def experiment(self) -> Any:
        return DummyExperiment()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The config is in config.yaml."""

    @rank_zero_only
    def begin(self, *, step: int = 0, rows: Sequence[Row] = ()) -> None:
        """Goes on after `step`, with the rows of metrics.jsonl up to there: each is in the table once."""
        self.begun = True
        with self.enduring():
            self._write([{"step": row["step"], **with_nan(row)} for row in rows])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self.begun:
            self.begin()
        row = {"step": step, **metrics}
        with self.enduring():
            if row.keys() <= set(self._columns):
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)
            else:  # one column more changes every line
                with self.path.open(newline="", encoding="utf-8") as file:
                    before = list(csv.DictReader(file))
                self._write([*before, row])

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Whole or not at all."""
        columns = dict.fromkeys(["step", *self._columns, *(name for row in rows for name in row)])
        beside = self.path.with_name(self.path.name + PARTIAL)
        with beside.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, [*columns], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        os.replace(beside, self.path)
        self._columns = [*columns]
