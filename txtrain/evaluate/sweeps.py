"""Sweeps as the models of their jobs, labelled by overrides."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from txtrain.compare.sweep import Sweep
from txtrain.errors import UserError
from txtrain.saving import find_checkpoint

log = logging.getLogger(__name__)


def expand_sweeps(models: Sequence[str]) -> list[tuple[str, str]]:
    """Label and path of each model; a sweep's directory stands for its jobs, in their order.

    Args:
        models: paths as the user typed them.

    Raises:
        UserError: no job of a sweep has a checkpoint.
    """
    found = []
    for name in models:
        folder = Path(name).expanduser()
        if (folder / "jobs.json").is_file():
            prefix = f"{folder.name}/" if len(models) > 1 else ""
            found += [(f"{prefix}{title}", path) for title, path in _jobs(folder)]
        else:
            found.append((name, name))
    return found


def _jobs(folder: Path) -> Iterator[tuple[str, str]]:
    """Titles such as `3 norm=pre seed=1`, and run directories."""
    sweep = Sweep(folder)
    trained = [job for job in sweep.jobs if find_checkpoint(job.directory) is not None]
    if not trained:
        raise UserError(f"{folder} has no job with a checkpoint: name another sweep, or train this one")
    for job in sweep.jobs:
        if job in trained:
            yield sweep.title(job), str(job.directory)
        else:
            log.warning("%s: job %s has no checkpoint and is left out", folder, job.number)
