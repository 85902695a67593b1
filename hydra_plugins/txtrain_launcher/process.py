"""`hydra/launcher=process`: each job of a sweep in a process of its own, started as a user would start it.

Hydra's own launcher runs all jobs in one process, where Lightning's other ranks and what a job leaves behind (process
groups, environment variables, compiled graphs) break the jobs after it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from txtrain.compare.sweep import Job, Sweep
from txtrain.compose import split
from txtrain.config import check, to_plain
from txtrain.errors import UserError

# What tells a process that it is a rank of somebody else's run.
RANK_VARIABLES = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT") + (
    "PL_GLOBAL_SEED",
    "TXTRAIN_RUN_DIR",
)


@dataclass
class ProcessLauncherConf:
    _target_: str = "hydra_plugins.txtrain_launcher.process.ProcessLauncher"
    parallel_jobs: int = 1


ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf, provider="txtrain")


class ProcessLauncher(Launcher):
    """Runs jobs as processes and tells the sweeper the validation loss in each one's summary.json.

    A job that fails gives an infinite loss: an exception would end the sweep in Hydra's sweeper as in Optuna's.

    Args:
        parallel_jobs: how many run at once; each of them sees all devices.
    """

    def __init__(self, parallel_jobs: int = 1) -> None:
        self.parallel_jobs = parallel_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.config = config
        self.sweep = Sweep(Path(config.hydra.sweep.dir))
        task_function.sweep = self.sweep  # for the report, once the sweeper is through with all its batches

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        configs = [self._compose(overrides) for overrides in job_overrides]
        if initial_job_idx == 0:  # a mistake in any job is told before the first one starts
            for config in configs:
                check(to_plain(config))
        jobs = [self.sweep.add(initial_job_idx + i, list(overrides)) for i, overrides in enumerate(job_overrides)]
        self._run(jobs)
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
        if config.run_dir or config.resume:
            raise UserError(
                "run_dir and resume mean one run, not a sweep: leave them out (hydra.sweep.dir=PATH moves a sweep)"
            )
        return config

    def _run(self, jobs: Sequence[Job]) -> None:
        """Keep `parallel_jobs` processes running until all jobs are done; leave none behind."""
        waiting, running = list(jobs), dict[Job, subprocess.Popen[bytes]]()
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            while waiting or running:
                while waiting and len(running) < self.parallel_jobs:
                    job = waiting.pop(0)
                    running[job] = self._start(job)
                for job, process in list(running.items()):
                    if process.poll() is not None:
                        self._finish(job, running.pop(job))
                time.sleep(0.1)
        finally:
            for process in running.values():
                _end(process)
            signal.signal(signal.SIGTERM, previous)

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        print(f"job {self.sweep.title(job)}: started, output in {job.log}", flush=True)
        job.state = "running"
        overrides = [f"{key}={value}" for key, value in job.overrides.items()]
        environment = {key: value for key, value in os.environ.items() if key not in RANK_VARIABLES}
        environment |= {"TXTRAIN_SWEEP": self.sweep.directory.name, "TXTRAIN_JOB": self.sweep.title(job)}
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("wb") as log:
            return subprocess.Popen(
                [*command(), *overrides, f"run_dir={_quoted(job.directory)}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a process group of its own, which ends with all its ranks
            )

    def _finish(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        _end(process)  # ranks that outlived it
        job.end(process.returncode)
        self.sweep.write()
        outcome = f"{job.last_words()} (see {job.log})" if job.state == "failed" else f"validation loss {job.loss:.4f}"
        print(f"job {self.sweep.title(job)}: {job.state}, {outcome}", flush=True)


def command() -> list[str]:
    """How this process was started, up to the overrides of the job: no sweep (-m), and no settings of Hydra's own."""
    arguments = sys.argv[1:]  # the last of the original ones: `python -m txtrain train` has others before them
    start = sys.orig_argv[1 : len(sys.orig_argv) - len(arguments)]
    flags, overrides = split(arguments)
    flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    return [sys.executable, *start, *flags, *(o for o in overrides if o.startswith("hydra.searchpath="))]


def _quoted(path: Path) -> str:
    """The path as a string of Hydra's override grammar."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a job with all its ranks: by Ctrl-C if it runs, so that it can close its files, then for good."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(timeout=10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
