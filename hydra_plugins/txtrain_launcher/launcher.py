"""What our launchers have in common: jobs are processes, started as a user would start them, and a sweep can go on.

Hydra's own launchers run a job inside a process of theirs, where Lightning's other ranks and what a job leaves behind
(process groups, environment variables, compiled graphs) break the jobs after it.
"""

import fcntl
import os
import shlex
import shutil
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from txtrain import trust
from txtrain.compare.sweep import Job, Sweep
from txtrain.compose import split
from txtrain.config import check, resumable, to_plain
from txtrain.errors import UserError
from txtrain.grammar import quoted
from txtrain.mixtures import as_typed, spread

# What tells a process that it is a rank of somebody else's run, by the beginning of its name.
RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "ROLE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"),
    *("GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_", "SLURM_"),
    *("PL_GLOBAL_SEED", "TXTRAIN_RUN_DIR"),
)

GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


class SweepLauncher(Launcher):
    """Runs what is left of a sweep, and tells the sweeper the validation loss in each job's summary.json.

    A job that fails gives an infinite loss: an exception would end the sweep in Hydra's sweeper as in Optuna's.

    Args:
        retry_failed: whether jobs that failed when the sweep was run before are tried again.
    """

    def __init__(self, *, retry_failed: bool = False) -> None:
        self.retry_failed = retry_failed

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.config = config
        self.sweep = Sweep(Path(config.hydra.sweep.dir))
        self.sweep.go_on = command_to_go_on(self.sweep.directory)
        task_function.sweep = self.sweep  # for the report, once the sweeper is through with all its batches

    @abstractmethod
    def request(self, config: DictConfig) -> Any:
        """What a job asks for of the machine or the cluster; raises a UserError if it cannot have it."""

    @abstractmethod
    def settle(self) -> None:
        """Find out what became of the jobs of an earlier run of this sweep."""

    @abstractmethod
    def run(self, jobs: Mapping[Job, Any]) -> None:
        """Run jobs, with their requests, until all have ended."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        configs = [self._compose(overrides) for overrides in job_overrides]
        if initial_job_idx == 0:  # a mistake in any job is told before the first one starts
            for config in configs:
                check(to_plain(config))
        requests = [self.request(config) for config in configs]
        if initial_job_idx == 0:
            self.sweep.directory.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.sweep.directory)
            self.settle()
        places = range(initial_job_idx, initial_job_idx + len(configs))
        is_grid = self.config.hydra.sweeper._target_ == GRID
        jobs = [
            self.sweep.add(list(map(as_typed, overrides)), number=place if is_grid else None)
            for place, overrides in zip(places, job_overrides, strict=True)
        ]
        left = {job: request for job, request in zip(jobs, requests, strict=True) if self._is_left(job)}
        for job in jobs:
            if job not in left:
                print(f"job {self.sweep.title(job)}: {job.state} before", flush=True)
        self.sweep.write()
        self.run(left)
        return [
            JobReturn(
                overrides=list(overrides),
                cfg=config,
                working_dir=str(job.directory),
                task_name="train",
                status=JobStatus.COMPLETED,
                _return_value=job.loss,
            )
            for job, config, overrides in zip(jobs, configs, job_overrides, strict=True)
        ]

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        config = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
        OmegaConf.update(config, "trust", trust.trusted(), force_add=True)
        spread(config)
        if config.run_dir or config.resume:
            raise UserError(
                "run_dir and resume mean one run, not a sweep: leave them out (hydra.sweep.dir=PATH moves a sweep)"
            )
        return config

    def _is_left(self, job: Job) -> bool:
        return not job.done or (self.retry_failed and job.state == "failed")

    def begin(self, job: Job) -> list[str]:
        """Make a job's directory ready, and return the command line that goes on with it, or starts it anew."""
        directory = quoted(str(job.directory))
        goes_on = job.directory.exists() and _has_checkpoint(job.directory)
        if job.directory.exists() and not goes_on:
            aside = job.directory.with_suffix(".before")
            shutil.rmtree(aside, ignore_errors=True)
            job.directory.rename(aside)
        job.begin()
        print(f"job {self.sweep.title(job)}: {'goes on' if goes_on else 'started'}, output in {job.log}", flush=True)
        # What is trusted is passed on as it was typed here, not as a sweeper or a file of an earlier sweep has it.
        own = {key: value for key, value in job.overrides.items() if not trust.TRUST.match(f"{key}=")}
        overrides = [f"{key}={value}" for key, value in own.items() if not goes_on or resumable(key)]
        return [*command(), *overrides, *trust.as_typed(), f"{'resume' if goes_on else 'run_dir'}={directory}"]

    def end(self, job: Job, returncode: int | None) -> None:
        """Write down and tell how a job ended."""
        job.end(returncode)
        self.sweep.write()
        outcome = (
            f"validation loss {job.loss:.4f}" if job.state == "finished" else f"{job.last_words()} (see {job.log})"
        )
        print(f"job {self.sweep.title(job)}: {job.state}, {outcome}", flush=True)

    def environment(self, job: Job) -> dict[str, str]:
        """Of the job's process: it is no rank of this one, and knows the sweep that it belongs to."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(RANK_VARIABLES)}
        own |= {"SLURM_CONF": os.environ["SLURM_CONF"]} if "SLURM_CONF" in os.environ else {}
        return own | {"TXTRAIN_SWEEP": self.sweep.directory.name, "TXTRAIN_JOB": self.sweep.title(job)}


def _has_checkpoint(run_dir: Path) -> bool:
    from txtrain.saving import find_checkpoint  # imports torch, which a new sweep need not wait for

    return find_checkpoint(run_dir) is not None


def command() -> list[str]:
    """How this process was started, up to the overrides of the job: no sweep (-m), and no settings of Hydra's own."""
    start, flags, overrides = _typed()
    flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    return [sys.executable, *start, *flags, *(o for o in overrides if o.startswith("hydra.searchpath="))]


def command_to_go_on(directory: Path) -> str:
    """What to type to run what is left of the sweep in `directory`."""
    start, flags, overrides = _typed()
    replaced = ("hydra.sweep.dir=", "hydra.launcher.retry_failed=")
    overrides = [as_typed(override) for override in overrides if not override.startswith(replaced)]
    return shlex.join([sys.orig_argv[0], *start, *flags, *overrides, f"hydra.sweep.dir={directory}"])


def _typed() -> tuple[list[str], list[str], list[str]]:
    """The command line in three parts: the program, flags, overrides."""
    arguments = sys.argv[1:]  # the last of the original ones: `python -m txtrain train` has others before them
    return sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)], *split(arguments)


def lock(directory: Path) -> int:
    """Refuses a second process on the same sweep; held until this process ends, however it does."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"hydra.sweep.dir={directory} is being run by another process: wait for it, or end it first"
        ) from None
    except OSError:  # a file system without locks
        pass
    return descriptor
