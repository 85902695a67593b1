"""The run directory: all that a run leaves behind, in one folder."""

import json
import logging
import os
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from txtrain.config import remembered, saved_config, to_plain
from txtrain.errors import UserError
from txtrain.launch import find_launch, slurm_job, slurm_restarted

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
        if (self.path / "config.yaml").exists() and not slurm_restarted():
            raise UserError(
                f"run_dir={self.path} holds a run already: type resume={self.path}, or name another run_dir"
            )
        existing = next(folder for folder in (self.path.absolute(), *self.path.absolute().parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(
                f"run_dir={self.path} cannot be written: {existing} is not a writable folder, name another run_dir"
            )

    def create(self, config: dict[str, Any], overrides: list[str], data: "Data") -> None:
        """Makes the folder and writes down what was asked for, what the model needs of the data, and their name."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            (self.path / "overrides.txt").write_text("".join(f"{override}\n" for override in overrides))
            data.save(self.path)
            (self.path / "data.json").write_text(json.dumps(self._record(data)) + "\n")
        except OSError as error:
            raise UserError(
                f"run_dir={self.path} cannot be written ({error.strerror}): name another run_dir"
            ) from error

    def remember_end(self, config: "DictConfig") -> None:
        """For a run that goes on, perhaps longer: whatever interrupts it, it goes on to this end."""
        path = self.path / "config.yaml"
        saved = saved_config(self.path)
        lasting = remembered(saved, config)
        if lasting == saved:
            return
        partial = path.with_name(path.name + PARTIAL)
        try:
            partial.write_text(yaml.safe_dump(to_plain(lasting), sort_keys=False))
            os.replace(partial, path)
        except OSError as error:
            log.warning("%s cannot be written (%s): resume=%s will not know the new end", path, error, self.path)

    def finished_at(self, step: int) -> bool:
        """Whether the run has told its outcome after this step; a process killed just before that has not."""
        try:
            outcome = self._read("summary.json") or {}
        except ValueError:  # what a loss of power leaves
            return False
        return outcome.get("state") in ("finished", "stopped") and outcome.get("steps") == step

    def check_data(self, data: "Data") -> None:
        """For a run that goes on: says so if the data are others than it began with.

        Raises:
            UserError: with these they would mean something else to the model.
        """
        began, now = self._read("data.json"), self._record(data)
        if began is None or all(began[key] == now[key] for key in ("fingerprint", "samples")):
            return
        data.check_saved(self.path)
        log.warning(
            "The data are not those that the run began with (%s samples then, %s now, or other text): what follows "
            "is no exact continuation. Put them back to have one.",
            began["samples"],
            now["samples"],
        )

    def _read(self, name: str) -> Any:
        """What a JSON file of the run says; None without it."""
        path = self.path / name
        return json.loads(path.read_text()) if path.is_file() else None

    @staticmethod
    def _record(data: "Data") -> dict[str, Any]:
        return {"fingerprint": data.fingerprint(), "samples": len(data.samples("train")), "sizes": data.sizes()}

    def share(self) -> None:
        """Lets the run's other processes find the folder."""
        os.environ[ENVIRONMENT] = str(self.path)  # those that this one starts
        find_launch().tell(str(self.path))
