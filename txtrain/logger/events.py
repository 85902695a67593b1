"""TensorBoard."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyExperiment, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from txtrain.logger.endure import Enduring, Row, with_nan


class TensorBoard(Enduring, TensorBoardLogger):
    """Lightning's TensorBoard logger, in `tensorboard/` of the run directory, that shows each step once.

    Args:
        run_dir: holds the files.
        config: the run's, whole.
    """

    label = "TensorBoard"

    def __init__(self, *, run_dir: Path, config: Mapping[str, Any]) -> None:
        super().__init__(save_dir=run_dir, name="", version="tensorboard", default_hp_metric=False)
        self.log_hyperparams(dict(config))

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer once it has begun; Lightning asks for it before the checkpoint is read."""
        return self._experiment or DummyExperiment()

    @rank_zero_only
    def begin(self, *, step: int = 0, rows: Sequence[Row] = ()) -> None:
        """Goes on after `step`: what older files have from there on is not shown."""
        from torch.utils.tensorboard import SummaryWriter

        self.begun = True
        with self.enduring():
            first_file = not any(Path(self.log_dir).glob("events.*"))
            self._experiment = SummaryWriter(log_dir=self.log_dir, purge_step=step + 1 if step else None)
            if first_file:  # the run had another logger before
                for row in rows:
                    super().log_metrics(with_nan(row), row["step"])

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self.begun:
            self.begin()
        with self.enduring():
            super().log_metrics(metrics, step)

    def log_samples(self, rows: Sequence[Sequence[Any]]) -> None:
        """The newest of the (step, prompt, text)."""
        step, prompt, text = rows[-1]
        with self.enduring():
            self.experiment.add_text("samples", f"    {prompt}|{text}".replace("\n", "\n    "), step)

    def reopen(self, *, step: int, rows: Sequence[Row]) -> None:
        """Of a run that has ended: what it has stays."""
        self.begin(step=step, rows=rows)

    def log_pictures(self, pictures: Mapping[str, bytes], *, step: int) -> None:
        """PNG files by name."""
        from txtrain.plots.canvas import as_array

        with self.enduring():
            for name, content in pictures.items():
                self.experiment.add_image(f"plots/{name}", as_array(content), step, dataformats="HWC")

    @rank_zero_only
    def save(self) -> None:
        """Writes what waits in memory; with each checkpoint, so that a run that goes on from it lacks nothing."""
        with self.enduring():
            super().save()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self.enduring():
            super().finalize(status)
