"""The run directory: all that a run leaves behind, in one folder."""

import errno
import json
import logging
import os
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from txtrain.config import remembered, saved_config, to_plain
from txtrain.errors import UserError
from txtrain.launch import find_launch, slurm_job, slurm_restarted
from txtrain.owner import Owner, check_unowned
from txtrain.records import DataRecord, SummaryRecord, read_record

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from txtrain.data.base import Data

PARTIAL = ".partial"  # what is being written
ENVIRONMENT = "TXTRAIN_RUN_DIR"

log = logging.getLogger(__name__)


class RunDirectory:
    """The folder of one run: config.yaml, overrides.txt, data.json, metrics.jsonl, train.log, checkpoints/,
    summary.json.

    Args:
        path: the folder. Nothing is written before `create`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._owned = False

    @staticmethod
    def default(name: str) -> "RunDirectory":
        """runs/<name>/<date>_<time>-<process>, or runs/<name>/<job> where SLURM may queue the job again."""
        parent, job = Path("runs") / name, slurm_job()
        if job:
            return RunDirectory(parent / job)
        now = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}"
        path = parent / now
        for number in count(2):  # one process may start several runs within a second
            if not path.exists():
                break
            path = parent / f"{now}-{number}"
        return RunDirectory(path)

    @staticmethod
    def of_first() -> "RunDirectory | None":
        """The directory of the run's first process if this is another one, which waits until there is one."""
        launch = find_launch()
        if launch.rank == 0:
            return None
        path = os.environ.get(ENVIRONMENT) if launch.starter == "python" else launch.hear()
        return RunDirectory(path) if path else None

    def goes_on(self) -> bool:
        """Whether SLURM has started this job before, and a checkpoint was written then."""
        if not slurm_restarted() or not (self.path / "config.yaml").is_file():
            return False
        from txtrain.saving import find_checkpoint  # imports torch, for which nothing else waits

        return find_checkpoint(self.path) is not None

    def check_new(self) -> None:
        """Raises a UserError if the folder holds a run already, or could not be made or written."""
        self._check_empty()
        existing = next(folder for folder in (self.path.absolute(), *self.path.absolute().parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(
                f"run_dir={self.path} cannot be written: {existing} is not a writable folder, name another run_dir"
            )

    def own(self) -> None:
        """Makes this process the only one that trains here, until it ends.

        Raises:
            UserError: another process trains here, or the folder cannot be written.
        """
        try:
            Owner(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(_unwritable(self.path, error)) from error
            log.warning("%s has no room for a lock (%s): start no other run in it.", self.path, error.strerror)
        self._owned = True

    def starts_anew(self) -> bool:
        """Whether a run that is to go on was ended before its first checkpoint; whole leftovers get their names."""
        from txtrain.saving import BASE, find_checkpoint, list_checkpoints, recover, remove

        folder = self.path / "checkpoints"
        if self._owned:
            try:
                recover(folder)
            except OSError as error:
                raise UserError(_unwritable(folder, error)) from error
        if list_checkpoints(folder) or find_checkpoint(self.path):
            return False
        if self._owned:
            remove(folder / BASE)
        return True

    def create(self, config: dict[str, Any], overrides: list[str], data: "Data") -> None:
        """Makes the folder and writes down what was asked for, what the model needs of the data, and their name.

        The config comes last: a folder without one is no run, so one that could not be written whole is none.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            before = {file.name for file in self.path.iterdir()}
            if not self._owned:
                self.own()
                self._check_empty()
            try:
                if "config.yaml" not in before:  # else they are those of the run that starts anew
                    (self.path / "overrides.txt").write_text("".join(f"{override}\n" for override in overrides))
                data.save(self.path)
                (self.path / "data.json").write_text(json.dumps(self._record(data)) + "\n")
                self._write_config(config)
            except OSError:
                for file in self.path.iterdir():
                    if file.name not in before and file.is_file():
                        file.unlink()
                raise
        except OSError as error:
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
            raise UserError(_unwritable(self.path, error)) from error

    def _check_empty(self) -> None:
        """Raises a UserError if another process trains in the folder, or it holds a run; an empty config is none."""
        if not self._owned:
            check_unowned(self.path)
        config = self.path / "config.yaml"
        if config.exists() and not (config.is_file() and config.stat().st_size == 0) and not slurm_restarted():
            raise UserError(
                f"run_dir={self.path} holds a run already: type resume={self.path}, or name another run_dir"
            )

    def _write_config(self, config: dict[str, Any]) -> None:
        path = self.path / "config.yaml"
        partial = path.with_name(path.name + PARTIAL)
        with partial.open("w") as file:
            file.write(yaml.safe_dump(config, sort_keys=False))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def remember_end(self, config: "DictConfig") -> None:
        """For a run that goes on, perhaps longer: whatever interrupts it, it goes on to this end."""
        path = self.path / "config.yaml"
        saved = saved_config(self.path)
        lasting = remembered(saved, config)
        if lasting == saved:
            return
        try:
            self._write_config(to_plain(lasting))
        except OSError as error:
            log.warning("%s cannot be written (%s): resume=%s will not know the new end", path, error, self.path)

    def finished_at(self, step: int) -> bool:
        """Whether the run has told its outcome after this step; a process killed just before that has not."""
        try:
            outcome = read_record(self.path / "summary.json", SummaryRecord)
        except UserError:  # there is none, or it is what a loss of power leaves
            return False
        return outcome.state in ("finished", "stopped") and outcome.steps == step

    def check_data(self, data: "Data") -> None:
        """For a run that goes on: says so if the data are others than it began with.

        Raises:
            UserError: with these they would mean something else to the model.
        """
        path, now = self.path / "data.json", self._record(data)
        if not os.path.lexists(path):
            return
        began = read_record(path, DataRecord)
        if (began.fingerprint, began.samples) == (now["fingerprint"], now["samples"]):
            return
        data.check_saved(self.path)
        log.warning(
            "The data are not those that the run began with (%s samples then, %s now, or other text): what follows "
            "is no exact continuation. Put them back to have one.",
            began.samples,
            now["samples"],
        )

    @staticmethod
    def _record(data: "Data") -> dict[str, Any]:
        return {"fingerprint": data.fingerprint(), "samples": len(data.samples("train")), "sizes": data.sizes()}

    def share(self) -> None:
        """Lets the run's other processes find the folder."""
        os.environ[ENVIRONMENT] = str(self.path)  # those that this one starts
        find_launch().tell(str(self.path))


def _unwritable(path: Path, error: OSError) -> str:
    return f"run_dir={path} cannot be written ({error.strerror}): name another run_dir"
