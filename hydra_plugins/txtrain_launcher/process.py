"""`hydra/launcher=process`: each job of a sweep in a process of its own on this machine, with devices of its own."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from hydra_plugins.txtrain_launcher.launcher import SweepLauncher
from hydra_plugins.txtrain_launcher.leases import Leases, Request
from txtrain.compare.sweep import Job

# What jobs may take to save a checkpoint when the sweep is stopped, in seconds.
PATIENCE = 60.0

PR_SET_PDEATHSIG = 1  # from Linux's prctl.h


@dataclass
class ProcessLauncherConf:
    _target_: str = "hydra_plugins.txtrain_launcher.process.ProcessLauncher"
    parallel_jobs: int | None = None
    retry_failed: bool = False


ConfigStore.instance().store(group="hydra/launcher", name="process", node=ProcessLauncherConf, provider="txtrain")


class ProcessLauncher(SweepLauncher):
    """Runs jobs as processes, as many at once as there are devices for.

    A job's log is locked by its processes, so that another run of the sweep knows whether any of them still lives.

    Args:
        parallel_jobs: how many run at once at most; None: as many as there are GPUs for, and one on CPUs.
        retry_failed: whether jobs that failed when the sweep was run before are tried again.
    """

    def __init__(self, parallel_jobs: int | None = None, retry_failed: bool = False) -> None:
        super().__init__(retry_failed=retry_failed)
        self.parallel_jobs = parallel_jobs

    def request(self, config: DictConfig) -> Request:
        return Request.of(config)

    def settle(self) -> None:
        for job in self.sweep.jobs:
            if is_locked(job.log):
                print(f"job {self.sweep.title(job)}: still runs since before, waiting for its end", flush=True)
            while is_locked(job.log):
                time.sleep(0.2)
            job.look()

    def run(self, jobs: Mapping[Job, Request]) -> None:
        """In order: a job that has to wait for devices lets none overtake it."""
        leases = {kind: Leases(kind=kind, most=self.parallel_jobs) for kind in {it.kind for it in jobs.values()}}
        waiting, running = list(jobs), dict[Job, tuple[subprocess.Popen[bytes], list[int]]]()
        try:
            while waiting or running:
                while waiting:
                    request = jobs[waiting[0]]
                    pool = leases[request.kind]
                    lease = pool.take(request) if len(running) < pool.most else None
                    if lease is None:
                        break
                    job = waiting.pop(0)
                    running[job] = self._start(job, pool.environment(request, lease, jobs=len(jobs))), lease
                for job, (process, lease) in list(running.items()):
                    if process.poll() is not None:
                        end([process])  # ranks that outlived it
                        leases[jobs[job].kind].give_back(lease)
                        del running[job]
                        self.end(job, process.returncode)
                time.sleep(0.1)
        except BaseException:
            if running:
                print("\nending the jobs that run, once they have saved (again: at once)", flush=True)
            end([process for process, _ in running.values()])
            for job, (process, _) in running.items():
                self.end(job, process.returncode)
            self.sweep.tell_how_to_go_on()
            raise

    def _start(self, job: Job, devices: dict[str, str]) -> subprocess.Popen[bytes]:
        arguments = self.begin(job)
        self.sweep.write()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(log, fcntl.LOCK_EX)
            return subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(job) | devices,
                start_new_session=True,  # a process group of its own, which ends with all its ranks
                preexec_fn=end_with_parent if sys.platform == "linux" else None,
            )


def end_with_parent() -> None:
    """Have this process told to end when the one that started it does, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def is_locked(log: Path) -> bool:
    """Whether a process that was started with this log still lives."""
    if not log.exists():
        return False
    with log.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # a file system without locks
            return False
    return False


def end(processes: Collection[subprocess.Popen[bytes]]) -> None:
    """End jobs with all their ranks: by Ctrl-C, so that they can save, then for good; at once if told again."""
    deadline = time.monotonic() + PATIENCE
    try:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    except (KeyboardInterrupt, SystemExit):
        pass
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
