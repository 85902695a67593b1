"""`hydra/launcher=submitit_slurm`: each job of a sweep as a job of SLURM, with devices and nodes of its own.

The name and the keys are those of Hydra's submitit plugin, which is not needed: it runs a job inside a function that it
has pickled, where a run of several devices is none.
"""

import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from hydra_plugins.txtrain_launcher.launcher import SweepLauncher
from txtrain.compare.sweep import Job
from txtrain.devices import device_numbers
from txtrain.errors import UserError

AUTO = ("auto", "-1", -1)

# Options of sbatch, where they have other names.
OPTIONS = {"timeout_min": "time", "tasks_per_node": "ntasks-per-node", "mem_gb": "mem", "name": "job-name"}


@dataclass
class SubmititSlurmConf:
    _target_: str = "hydra_plugins.txtrain_launcher.slurm.SlurmLauncher"
    array_parallelism: int = 256
    retry_failed: bool = False
    poll_seconds: float = 10.0
    signal_delay_s: int = 120
    setup: list[str] = field(default_factory=list)
    additional_parameters: dict[str, Any] = field(default_factory=dict)
    name: str = "${name}"
    timeout_min: int = 60
    nodes: int | None = None
    tasks_per_node: int | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: int | None = None
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    gres: str | None = None
    comment: str | None = None


ConfigStore.instance().store(group="hydra/launcher", name="submitit_slurm", node=SubmititSlurmConf, provider="txtrain")


class SlurmLauncher(SweepLauncher):
    """Submits jobs and waits for their ends; they stay in the queue when this process ends before.

    Args:
        array_parallelism: how many jobs are in the queue at once.
        retry_failed: whether jobs that failed when the sweep was run before are tried again.
        poll_seconds: from one look at the queue to the next.
        signal_delay_s: how long before its time is over a job is told to save a checkpoint.
        setup: lines of shell before a job begins, such as `module load cuda`.
        additional_parameters: further options of sbatch.
        resources: what else sbatch takes; see SubmititSlurmConf.
    """

    def __init__(
        self,
        *,
        array_parallelism: int,
        retry_failed: bool,
        poll_seconds: float,
        signal_delay_s: int,
        setup: list[str],
        additional_parameters: dict[str, Any],
        **resources: Any,
    ) -> None:
        super().__init__(retry_failed=retry_failed)
        self.array_parallelism, self.poll_seconds, self.setup_lines = array_parallelism, poll_seconds, setup
        self.options = {OPTIONS.get(key, key.replace("_", "-")): value for key, value in resources.items()}
        self.options |= {"signal": f"USR1@{signal_delay_s}", "requeue": "", "open-mode": "append"}
        self.options |= additional_parameters

    def request(self, config: DictConfig) -> dict[str, Any]:
        """Options of sbatch; tasks, nodes and GPUs are those that the trainer asks for, unless they were typed."""
        if shutil.which("sbatch") is None:
            raise UserError("hydra/launcher=submitit_slurm finds no sbatch here: type hydra/launcher=process")
        options, trainer = dict(self.options), config.trainer
        devices = len(device_numbers(trainer.devices)) or trainer.devices
        tasks = options["ntasks-per-node"] or (options["gpus-per-node"] or 1 if devices in AUTO else devices)
        nodes = options["nodes"] or trainer.num_nodes
        if devices not in (*AUTO, tasks, str(tasks)) or trainer.num_nodes not in (1, nodes):
            raise UserError(
                f"hydra.launcher asks SLURM for {nodes} × {tasks} processes (nodes × tasks_per_node), but the trainer "
                f"for {trainer.num_nodes} × {devices}: leave hydra.launcher.nodes and hydra.launcher.tasks_per_node out"
            )
        options["ntasks-per-node"], options["nodes"] = tasks, nodes
        if trainer.accelerator != "cpu" and options["gpus-per-node"] is None and options["gres"] is None:
            options["gpus-per-node"] = tasks
        if options["mem"] is not None:
            options["mem"] = f"{options['mem']}G"
        return {key: value for key, value in options.items() if value is not None}

    def settle(self) -> None:
        queued = _queued()
        while queued is None:
            time.sleep(self.poll_seconds)
            queued = _queued()
        for job in self.sweep.jobs:
            if job.slurm in queued:
                job.state = "running"
            elif job.state == "running":
                job.end(_returncode(job))
            else:
                job.look()

    def run(self, jobs: Mapping[Job, dict[str, Any]]) -> None:
        waiting = [job for job in jobs if job.state != "running"]
        running = [job for job in jobs if job.state == "running"]
        for job in running:
            print(f"job {self.sweep.title(job)}: SLURM job {job.slurm} is still in the queue", flush=True)
        try:
            while waiting or running:
                while waiting and len(running) < self.array_parallelism:
                    job = waiting.pop(0)
                    if self._submit(job, jobs[job]):
                        running.append(job)
                time.sleep(self.poll_seconds)
                queued = _queued()
                for job in [job for job in running if queued is not None and job.slurm not in queued]:
                    running.remove(job)
                    self.end(job, _returncode(job))
        except BaseException:
            numbers = " ".join(str(job.slurm) for job in running)
            print(f"\nSLURM jobs stay in the queue; to end them: scancel {numbers}", flush=True)
            self.sweep.tell_how_to_go_on()
            raise

    def _submit(self, job: Job, options: Mapping[str, Any]) -> bool:
        """Hand a job to SLURM; one that it refuses has failed."""
        script = job.directory.with_suffix(".sh")
        _exit_code(job).unlink(missing_ok=True)
        script.write_text(self._script(job, self.begin(job), options))
        sbatch = ["sbatch", "--parsable", str(script)]
        done = subprocess.run(sbatch, env=self.environment(job), capture_output=True, text=True)
        if done.returncode:
            with job.log.open("a") as log:
                log.write(done.stderr)
            self.end(job, done.returncode)
            return False
        job.slurm = done.stdout.split(";")[0].strip()
        self.sweep.write()
        print(f"job {self.sweep.title(job)}: waits in the queue as SLURM job {job.slurm}", flush=True)
        return True

    def _script(self, job: Job, arguments: list[str], options: Mapping[str, Any]) -> str:
        """For sbatch, also by hand: its end is written to a file, since SLURM forgets a job soon after it."""
        directives = [f"--{key}={value}" if value != "" else f"--{key}" for key, value in options.items()]
        for directive in directives:
            if "\n" in directive or "\r" in directive:  # what follows would be lines of the script
                raise UserError(f"hydra.launcher has an option of several lines ({directive!r}): type one line")
        ended = shlex.quote(str(_exit_code(job)))
        lines = [
            "#!/bin/bash",
            *(f"#SBATCH {directive}" for directive in [*directives, f"--output={job.log}"]),
            f"rm -f {ended}",
            'export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun no longer takes it over by itself',
            *self.setup_lines,
            f"srun --kill-on-bad-exit=1 {shlex.join(arguments)}",
            f"echo $? > {ended}",
        ]
        return "\n".join(lines) + "\n"


def _queued() -> set[str] | None:
    """The user's jobs that have not ended; None if SLURM does not answer."""
    done = subprocess.run(["squeue", "--me", "--noheader", "--format=%i"], capture_output=True, text=True)
    return None if done.returncode else set(done.stdout.split())


def _exit_code(job: Job) -> Path:
    return job.directory.with_suffix(".exit")


def _returncode(job: Job) -> int | None:
    """How a job ended that is no longer in the queue; None if it was killed."""
    path = _exit_code(job)
    try:
        return int(path.read_text()) if path.exists() else None
    except (OSError, ValueError):
        return None
