"""Where pictures go: PNG files in the run's folder, and the loggers that the run has."""

import logging
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from lightning.pytorch.loggers import Logger

from txtrain.callbacks.rows import Rows
from txtrain.config import check, instantiate, saved_config, to_plain
from txtrain.errors import UserError
from txtrain.logger import TensorBoard, WandB, close_loggers

FOLDER = "plots"

log = logging.getLogger(__name__)


def hang(pictures: Mapping[str, bytes], run: Path | None) -> None:
    """Writes PNG files, by name, into a folder of their own, prints where each is, and hands them to the run's loggers.

    Args:
        pictures: may be none.
        run: the run's directory; without one the files are written here.

    Raises:
        UserError: they cannot be written.
    """
    if not pictures:
        return
    if run is not None and run.is_relative_to(Path.cwd()):
        run = run.relative_to(Path.cwd())
    parent = run or Path()
    numbers = (parent / (f"{FOLDER}_{number}" if number > 1 else FOLDER) for number in count(1))
    folder = next(path for path in numbers if not path.exists())
    print()
    try:
        folder.mkdir()
        for name, content in pictures.items():
            path = folder / f"{name}.png"
            path.write_bytes(content)
            print(path)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}): make room there, or evaluate a copy of the run"
        ) from error
    if run is not None:
        log_pictures(pictures, run)


def log_pictures(pictures: Mapping[str, bytes], run: Path) -> None:
    """Shows pictures in W&B and TensorBoard, as far as the run logs there, at its last step."""
    config = to_plain(saved_config(run))
    check({"logger": config["logger"]})
    rows = Rows(run / "metrics.jsonl").read()
    step = max((row["step"] for row in rows), default=0)
    try:
        loggers: list[Logger] = instantiate(config["logger"], "logger")(run_dir=run, name=config["name"], config=config)
    except UserError as error:
        log.warning("The pictures are in no logger: %s", error)
        return
    for logger in loggers:
        if isinstance(logger, TensorBoard | WandB):
            logger.reopen(step=step, rows=rows)
            logger.log_pictures(pictures, step=step)
    close_loggers(loggers)
