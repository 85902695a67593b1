"""The run directory: all that a run leaves behind, in one folder."""

import os
import time
from pathlib import Path
from typing import Any

import yaml

from txtrain.data.tokenizer import Tokenizer
from txtrain.errors import UserError

ENVIRONMENT = "TXTRAIN_RUN_DIR"


class RunDirectory:
    """The folder of one run: config.yaml, overrides.txt, metrics.jsonl, train.log, checkpoints/, summary.json.

    Args:
        path: the folder. Nothing is written before `create`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @staticmethod
    def default(name: str) -> "RunDirectory":
        """runs/<name>/<date>_<time>-<process>."""
        return RunDirectory(Path("runs") / name / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}")

    @staticmethod
    def of_parent() -> "RunDirectory | None":
        """The directory of the process that started this one to help it, if any did."""
        path = os.environ.get(ENVIRONMENT)
        return RunDirectory(path) if path and os.environ.get("LOCAL_RANK", "0") != "0" else None

    def check_new(self) -> None:
        """Raises a UserError if the folder holds a run already, or could not be made or written."""
        if (self.path / "config.yaml").exists():
            raise UserError(
                f"run_dir={self.path} holds a run already: type resume={self.path}, or name another run_dir"
            )
        existing = next(folder for folder in (self.path.absolute(), *self.path.absolute().parents) if folder.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(
                f"run_dir={self.path} cannot be written: {existing} is not a writable folder, name another run_dir"
            )

    def create(self, config: dict[str, Any], overrides: list[str], tokenizer: Tokenizer) -> None:
        """Makes the folder and writes down what was asked for, and the tokenizer."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
            (self.path / "overrides.txt").write_text("".join(f"{override}\n" for override in overrides))
            tokenizer.save(self.path / "tokenizer.json")
        except OSError as error:
            raise UserError(
                f"run_dir={self.path} cannot be written ({error.strerror}): name another run_dir"
            ) from error

    def share_with_children(self) -> None:
        """Lets the processes that this one starts find the folder."""
        os.environ[ENVIRONMENT] = str(self.path)
