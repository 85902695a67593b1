"""Checkpoints on disk: when to write one, how it appears whole or not at all, and how it is found again.

`checkpoints/` holds `step_00000120.ckpt` (a file, or a folder where the strategy writes from every rank) and two links
to such names: `last` and `best`.
"""

import logging
import os
import re
import shutil
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from txtrain.errors import UserError

log = logging.getLogger(__name__)

LAST, BEST = "last", "best"
PARTIAL = ".partial"  # what is being written; left behind only by a process that died


@dataclass(frozen=True, kw_only=True)
class Save:
    """When to write checkpoints, and how many to keep.

    Args:
        every: optimizer steps from one to the next, or minutes such as `30min`.
        keep: newest checkpoints to keep; the best one is kept besides.
    """

    every: int | str = 100
    keep: int = 2

    def __post_init__(self) -> None:
        if not (self.steps or self.seconds):
            raise ValueError(f"save.every is {self.every}: give steps (save.every=100) or minutes (save.every=30min)")
        if self.keep < 1:
            raise ValueError(f"save.keep is {self.keep}: give at least 1, such as save.keep=2")

    @property
    def steps(self) -> int | None:
        return self.every if isinstance(self.every, int) and self.every > 0 else None

    @property
    def seconds(self) -> float | None:
        found = re.fullmatch(r"([0-9.]+)min", str(self.every))
        return float(found[1]) * 60 if found else None


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}.ckpt"


def checkpoint_step(path: Path) -> int:
    return int(path.name.removeprefix("step_").removesuffix(".ckpt"))


def list_checkpoints(folder: Path) -> list[Path]:
    """All that were written to their end, newest first."""
    return sorted(folder.glob("step_*.ckpt"), key=checkpoint_step, reverse=True)


def find_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run that is whole, or None."""
    return next((path for path in list_checkpoints(run_dir / "checkpoints") if damage(path) is None), None)


def check_checkpoint(path: Path) -> None:
    """Raises a UserError unless `path` is a whole checkpoint."""
    if found := damage(path):
        raise UserError(f"checkpoint {path} cannot be read ({found}): name another run")


def resume_point(run_dir: Path) -> Path:
    """The newest whole checkpoint of a run; newer ones that are damaged are named.

    Raises:
        UserError: there is none.
    """
    found = None
    for path in list_checkpoints(run_dir / "checkpoints"):
        found = damage(path)
        if found is None:
            return path
        log.warning("Checkpoint %s cannot be read (%s): looking for the one before.", path, found)
    why = "it has none" if found is None else "none of them can be read"
    raise UserError(f"resume={run_dir} has no whole checkpoint ({why}): name another run, or leave resume out")


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing: all files are read, and their checksums compared."""
    if not path.exists():
        return "it does not exist"
    if path.is_file():
        return _damaged_archive(path)
    if not any(path.iterdir()):
        return "it is empty"
    for file in sorted(path.rglob("*.pt")):
        if found := _damaged_archive(file):
            return f"{file.relative_to(path)}: {found}"
    return None


def _damaged_archive(path: Path) -> str | None:
    """torch.save writes ZIP archives, which carry a checksum of each tensor and end with their table of contents."""
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return "truncated or no checkpoint" if isinstance(error, zipfile.BadZipFile) else str(error)
    return f"{broken} is corrupted" if broken else None


def publish(partial: Path, path: Path) -> None:
    """Gives what was written as `partial` its name, once it is safely on the disk."""
    for file in [partial] if partial.is_file() else partial.rglob("*"):
        if file.is_file():
            _sync(file)
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(partial, path)
    _sync(path.parent)


def point(link: Path, target: Path) -> None:
    """Makes `link` a link to `target`, which lies beside it, at one stroke."""
    beside = link.with_name(link.name + PARTIAL)
    beside.unlink(missing_ok=True)
    beside.symlink_to(target.name)
    os.replace(beside, link)


def remove(path: Path) -> None:
    """As far as the disk lets it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def prune(folder: Path, *, keep: int, newest: int) -> None:
    """Removes all but `keep` checkpoints and the best one.

    What is newer than step `newest` was left by a run that was resumed from before it.
    """
    best = (folder / BEST).resolve()
    checkpoints = list_checkpoints(folder)
    stale = [path for path in checkpoints if checkpoint_step(path) > newest]
    for path in stale + [path for path in checkpoints if path not in stale][keep:]:
        if path.resolve() != best:
            remove(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
