"""The lines of a run: to the terminal and to train.log."""

import logging
import sys
import warnings
from contextlib import suppress
from pathlib import Path

from rich.text import Text

from txtrain.terminal import console

# extra= of a record: for train.log alone, and the colours of the best validation so far and of a run's result.
LOG_ONLY = {"log_only": True}
BEST = {"style": "green"}
RESULT = {"style": "bold green"}
# Warnings of Lightning's that nobody can do anything about.
HARMLESS = (r".*LeafSpec.* is deprecated", "The `srun` command is available")
LIBRARIES = ("lightning", "lightning.pytorch", "lightning.fabric", "DeepSpeed", "datasets", "wandb", "py.warnings")


def setup_logging(run_dir: Path | None, rank: int) -> None:
    """Lines of txtrain go to the terminal and, in a run directory, to train.log; those of libraries to train.log only.

    Only rank 0 speaks; other ranks tell errors. Call it again when the run directory exists or a library was loaded.
    """
    ours = logging.getLogger("txtrain")
    file: logging.Handler = logging.NullHandler()
    if run_dir is not None and rank == 0:
        file = _File(run_dir / "train.log", encoding="utf-8", delay=True)
        file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
        file.addFilter(_is_no_internal)
    _replace_handlers(ours, [_Terminal(), file])
    ours.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    logging.raiseExceptions = False  # libraries log to files of their own, and a full disk is told by ours
    logging.captureWarnings(True)
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message)
    for name in LIBRARIES:
        _replace_handlers(logging.getLogger(name), [file])


def _is_no_internal(record: logging.LogRecord) -> bool:
    """W&B has a log of its own for what it does inside. It sets the level of its logger where it is imported."""
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] != "wandb"


def _replace_handlers(logger: logging.Logger, handlers: list[logging.Handler]) -> None:
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        if isinstance(old, logging.FileHandler):
            old.close()
    for new in handlers:
        logger.addHandler(new)
    logger.propagate, logger.disabled = False, False  # a library's logging.config disables those of others


class _Terminal(logging.Handler):
    """Prints through the console that also draws the progress bar, so that lines appear above it."""

    def emit(self, record: logging.LogRecord) -> None:
        if not getattr(record, "log_only", False):
            style = "yellow" if record.levelno >= logging.WARNING else getattr(record, "style", "")
            with suppress(OSError):  # a terminal that was closed, or a full disk: train.log has the line
                console.print(Text(record.getMessage(), style=style))


class _File(logging.FileHandler):
    """train.log, which says once on the terminal that it cannot be written."""

    _told = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # from opening it
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if isinstance(error, OSError) and not self._told:
            self._told = True
            message = f"{self.baseFilename} cannot be written ({error.strerror}): its lines are only here."
            _Terminal().emit(logging.LogRecord(record.name, logging.WARNING, "", 0, message, None, None))

    def close(self) -> None:
        try:
            super().close()
        except OSError:  # what it could not write so far
            self.stream = None
