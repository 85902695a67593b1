"""The folder of checkpoints: their names, how they appear at one stroke, which is taken and which are removed."""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

from txtrain.errors import UserError
from txtrain.saving.manifest import damage
from txtrain.saving.parts import sync

log = logging.getLogger(__name__)

LAST, BEST = "last", "best"
BASE = "base.ckpt"  # frozen weights of a run that made them itself
PARTIAL = ".partial"  # what is being written; left behind only by a process that died


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


def resume_point(run_dir: Path, *, contents: bool = True) -> Path:
    """The newest whole checkpoint of a run; newer ones that are damaged are named.

    Args:
        run_dir: of the run.
        contents: whether to read all files; one process does so, whose choice the others follow.

    Raises:
        UserError: there is none.
    """
    found = None
    for path in list_checkpoints(run_dir / "checkpoints"):
        found = damage(path, contents=contents)
        if found is None:
            return path
        log.warning("Checkpoint %s cannot be read (%s): looking for the one before.", path, found)
    why = "it has none" if found is None else "none of them can be read"
    raise UserError(f"resume={run_dir} has no whole checkpoint ({why}): name another run, or leave resume out")


def publish(partial: Path, path: Path) -> None:
    """Gives what was written as `partial`, and is on the disk, its name."""
    sync(partial)
    remove(path)
    os.replace(partial, path)
    sync(path.parent)


def point(link: Path, target: Path) -> None:
    """Makes `link` a link to `target`, which lies beside it, at one stroke."""
    beside = link.with_name(link.name + PARTIAL)
    beside.unlink(missing_ok=True)
    beside.symlink_to(target.name)
    os.replace(beside, link)


def remove(path: Path) -> None:
    """As far as the disk lets it; a checkpoint loses its name first, so a killed process leaves none half removed."""
    if path.is_dir() and not path.is_symlink():
        with suppress(OSError):
            doomed = path.with_name(f"{path.name.removesuffix(PARTIAL)}.removed{PARTIAL}")
            os.replace(path, doomed)
            path = doomed
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
