"""A sweep as the models of its jobs, each named by its overrides."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from txtrain.compare.sweep import Sweep
from txtrain.errors import UserError
from txtrain.saving import find_checkpoint

log = logging.getLogger(__name__)


def expand(models: Sequence[str]) -> list[tuple[str, str]]:
    """The label and path of each model that is named; a sweep's directory stands for its jobs, in their order.

    Raises:
        UserError: no job of a sweep has a checkpoint.
    """
    found = []
    for name in models:
        if (Path(name).expanduser() / "jobs.json").is_file():
            prefix = f"{Path(name).name}/" if len(models) > 1 else ""
            found += [(f"{prefix}{title}", path) for title, path in _jobs(Path(name).expanduser())]
        else:
            found.append((name, name))
    return found


def _jobs(folder: Path) -> Iterator[tuple[str, str]]:
    """Titles such as `3 norm=pre seed=1`, and run directories."""
    sweep = Sweep(folder)
    trained = [job for job in sweep.jobs if find_checkpoint(job.directory) is not None]
    for job in sweep.jobs:
        if job not in trained:
            log.warning("job %s of %s has no checkpoint: left out", sweep.title(job), folder)
    if not trained:
        raise UserError(f"no job of the sweep {folder} has a checkpoint: name another, or train it")
    yield from ((sweep.title(job), str(job.directory)) for job in trained)
