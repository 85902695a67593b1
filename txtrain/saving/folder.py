"""The folder of checkpoints: their names, how they appear at one stroke, which is taken and which are removed."""

import ctypes
import logging
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from txtrain.errors import UserError
from txtrain.model.finite import is_finite
from txtrain.saving.manifest import damage
from txtrain.saving.parts import MOMENT, WEIGHT, Reader, sync

log = logging.getLogger(__name__)

LAST, BEST = "last", "best"
BASE = "base.ckpt"  # frozen weights of a run that made them itself
PARTIAL = ".partial"  # what is being written; left behind only by a process that died
UNFINISHED = rf"({LAST}|{BEST}|base\.ckpt|step_\d+\.ckpt)[a-z.]*\{PARTIAL}"
RENAME_EXCHANGE = 2  # of Linux's renameat2
AT_FDCWD = -100


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}.ckpt"


def checkpoint_step(path: Path) -> int:
    return int(path.name.removeprefix("step_").partition(".")[0])


def list_checkpoints(folder: Path) -> list[Path]:
    """All that were written to their end, newest first."""
    found = [path for path in folder.glob("step_*.ckpt") if re.fullmatch(r"step_\d+\.ckpt", path.name)]
    return sorted(found, key=checkpoint_step, reverse=True)


def find_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run that is whole, or None; without any, a leftover that is whole."""
    folder = run_dir / "checkpoints"
    return next((path for path in [*list_checkpoints(folder), *_leftovers(folder)] if damage(path) is None), None)


def recover(folder: Path) -> None:
    """Gives whole leftovers of a killed process their names, where nothing newer is whole; removes all others.

    Only for the process that owns the run.
    """
    newest = next((path for path in list_checkpoints(folder) if damage(path, contents=False) is None), None)
    for leftover in _leftovers(folder):
        path = folder / checkpoint_name(checkpoint_step(leftover))
        if newest and checkpoint_step(newest) >= checkpoint_step(path):
            break
        if damage(leftover) is None:
            publish(leftover, path)
            log.info("%s was left whole by a process that was killed: it is used as %s.", leftover.name, path.name)
            break
    for partial in partials(folder):
        remove(partial)


def resume_point(run_dir: Path, *, contents: bool = True) -> Path:
    """The newest whole checkpoint of a run; newer ones that are damaged are named.

    Args:
        run_dir: of the run.
        contents: whether to read all files; one process does so, whose choice the others follow.

    Raises:
        UserError: there is none.
    """
    found = None
    folder = run_dir / "checkpoints"
    for path in [*list_checkpoints(folder), *_leftovers(folder)]:
        found = damage(path, contents=contents) or (_not_finite(path) if contents else None)
        if found is None:
            return path
        log.warning("Checkpoint %s cannot be used (%s): looking for the one before.", path, found)
    why = "it has none" if found is None else f"none of them can be used: {found}"
    raise UserError(f"resume={run_dir} has no whole checkpoint ({why}): name another run, or leave resume out")


def _not_finite(checkpoint: Path) -> str | None:
    """Which weight or moment of a checkpoint has NaN or infinity, as earlier versions wrote; None if none has."""
    reader = Reader(checkpoint)
    name = next((name for name in reader if not is_finite(reader[name])), None)
    if name is None:
        return None
    weight, _, key = name.removeprefix(MOMENT).rpartition("/")
    return f"{f'{key} of {weight}' if name.startswith(MOMENT) else name.removeprefix(WEIGHT)} is not finite"


def publish(partial: Path, path: Path) -> None:
    """Gives what was written as `partial`, and is on the disk, its name.

    At each moment either the folder that had the name before has it, or this one; or, where the file system cannot
    exchange two names, both are leftovers that `recover` finds.
    """
    sync(partial)
    if not path.exists():
        os.replace(partial, path)
    elif _exchange(partial, path):
        sync(path.parent)
        remove(partial)
    else:
        before = path.with_name(f"{path.name}.before{PARTIAL}")
        remove(before)
        os.replace(path, before)
        os.replace(partial, path)
        sync(path.parent)
        remove(before)
    sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two names at one stroke; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def partials(folder: Path) -> list[Path]:
    """What a process that was killed has left unfinished: entries of our own names alone."""
    return [path for path in folder.glob(f"*{PARTIAL}") if re.fullmatch(UNFINISHED, path.name)]


def _leftovers(folder: Path) -> list[Path]:
    """Checkpoints without a name of their own, newest first; of one step what was written last is first."""
    found = [path for path in folder.glob(f"step_*{PARTIAL}") if re.fullmatch(r"step_\d+\.ckpt[a-z.]*", path.name)]
    return sorted(found, key=lambda path: (-checkpoint_step(path), len(path.name)))


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


def link(folder: Path, *, newest: int, best: int | None) -> None:
    """Derives the links `last` and `best` again from the steps of these checkpoints, where they are there."""
    for name, step in ((LAST, newest), (BEST, best)):
        target = folder / checkpoint_name(step) if step is not None else None
        if target and target.is_dir() and (folder / name).resolve() != target.resolve():
            point(folder / name, target)


def linked_step(folder: Path, name: str) -> int | None:
    """The step of the checkpoint that a link leads to, None without one."""
    path = folder / name
    found = re.fullmatch(r"step_(\d+)\.ckpt", path.resolve().name) if path.exists() else None
    return int(found[1]) if found else None


def prune(folder: Path, *, keep: int, newest: int, best: int | None = None) -> None:
    """Removes all but `keep` checkpoints and the best one, that of the step `best` or the one that its link leads to.

    What is newer than step `newest` was left by a run that was resumed from before it.
    """
    best = linked_step(folder, BEST) if best is None else best
    checkpoints = list_checkpoints(folder)
    stale = [path for path in checkpoints if checkpoint_step(path) > newest]
    for path in stale + [path for path in checkpoints if path not in stale][keep:]:
        if checkpoint_step(path) != best:
            remove(path)
