"""Who started the processes of a run: Lightning on this machine, or torchrun or SLURM's srun, here and on others.

Under torchrun and srun every process composes the same command. The first one checks it and makes the run directory;
the others wait until it tells them which that is, so a user's mistake is told once.
"""

import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf import DictConfig

from txtrain.errors import UserError

KEY = "txtrain/run_dir"
# What the first process tells of a run directory if it ends without one: in order, or by an error.
NONE, FAILED = "\0", "\1"
TELLING = 2.0  # seconds for its error, since who started the processes ends it with the first of the others that fails


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How this process was started.

    Args:
        starter: torchrun, srun, or python, if it is Lightning that starts the other processes.
        rank: of this process over all machines.
        devices: processes on each machine, if the starter says so.
        nodes: machines, if the starter says so.
    """

    starter: str = "python"
    rank: int = 0
    devices: int | None = None
    nodes: int | None = None

    def agree(self, trainer: DictConfig, overrides: Iterable[str]) -> None:
        """Writes the numbers of devices and nodes into the config of the trainer, unless the user typed others."""
        if self.devices is None:
            if trainer.num_nodes > 1:
                raise UserError(
                    f"trainer.num_nodes={trainer.num_nodes} needs a process on each machine, started by torchrun or "
                    "srun: see scripts/torchrun.sh and scripts/slurm.sh, or type trainer.num_nodes=1"
                )
            return
        typed = {override.partition("=")[0].lstrip("+") for override in overrides}
        for key, count in (("devices", self.devices), ("num_nodes", self.nodes)):
            if f"trainer.{key}" in typed and trainer[key] not in ("auto", -1, count):
                raise UserError(
                    f"trainer.{key}={trainer[key]}, but {self.starter} has started {self.nodes} × {self.devices} "
                    f"processes (nodes × devices): leave it out, or start others"
                )
            trainer[key] = count

    def environment(self) -> Any:
        """What tells Lightning the same."""
        from lightning.pytorch.plugins import environments

        if self.starter == "torchrun":
            return environments.TorchElasticEnvironment()
        if self.starter == "srun":
            os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(self.devices))
            return environments.SLURMEnvironment(auto_requeue=False)
        return environments.LightningEnvironment()

    @contextmanager
    def first_tells(self) -> Iterator[None]:
        """Around a command: once its first process ends, none waits for a run directory any more."""
        if self.starter == "python" or self.rank:
            yield
            return
        store, end = _store(self), FAILED
        try:
            yield
            end = NONE
        except SystemExit as error:
            end = FAILED if error.code else NONE
            raise
        finally:
            store.compare_set(_key(), "", end)

    @contextmanager
    def mistakes_once(self) -> Iterator[None]:
        """Around what every process does alike before the first one makes the run directory: it tells a mistake."""
        try:
            yield
        except UserError:
            if self.starter != "python" and self.rank:
                self.hear()  # ends this process if the first one has made the mistake too
            raise

    def tell(self, run_dir: str) -> None:
        """Tells the other processes the run directory."""
        if self.starter != "python" and self.rank == 0:
            _store(self).set(_key(), run_dir)

    def hear(self) -> str:
        """The run directory of the first process, once there is one.

        Raises:
            SystemExit: the first process has ended without one; it has told why.
        """
        try:
            store = _store(self)
            while not store.check([_key()]):
                time.sleep(0.2)  # here, not in the store, where no signal reaches this process
            run_dir: str = store.get(_key()).decode()
        except RuntimeError:
            raise SystemExit(1) from None
        if run_dir == FAILED:
            time.sleep(TELLING)
            raise SystemExit(1)  # not 0: torchrun on another machine would wait for all others to succeed, too
        if run_dir == NONE:
            raise SystemExit(0)
        return run_dir


def find_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """What the environment says."""
    number = {key: int(value) for key, value in environment.items() if value.isdigit()}
    if "TORCHELASTIC_RUN_ID" in environment:
        devices = number["LOCAL_WORLD_SIZE"]
        return Launch(starter="torchrun", rank=number["RANK"], devices=devices, nodes=number["WORLD_SIZE"] // devices)
    if "LOCAL_RANK" not in environment and "SLURM_STEP_ID" in environment and not _interactive(environment):
        nodes = number["SLURM_NNODES"]
        return Launch(starter="srun", rank=number["SLURM_PROCID"], devices=number["SLURM_NTASKS"] // nodes, nodes=nodes)
    return Launch(rank=number.get("LOCAL_RANK", 0))


def slurm_job(environment: Mapping[str, str] = os.environ) -> str | None:
    """The name that a job of SLURM keeps when it is queued again; None outside of one, and in an interactive shell."""
    if "SLURM_JOB_ID" not in environment or _interactive(environment):
        return None
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment["SLURM_JOB_ID"]


def slurm_restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether SLURM has started this job before."""
    return slurm_job(environment) is not None and int(environment.get("SLURM_RESTART_COUNT", 0)) > 0


def requeue() -> str:
    """Has SLURM queue this job again, and says what came of it."""
    job = slurm_job()
    try:
        done = subprocess.run(["scontrol", "requeue", str(job)], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"SLURM job {job} is not queued again: {error}"
    return f"SLURM job {job} is " + (f"not queued again: {done.stderr.strip()}" if done.returncode else "queued again")


def _interactive(environment: Mapping[str, str]) -> bool:
    """Whether a user types into a shell that SLURM has opened; Lightning has the same rule."""
    return environment.get("SLURM_JOB_NAME") in ("bash", "interactive")


def _key() -> str:
    return f"{KEY}/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"


@cache
def _store(launch: Launch) -> Any:
    """Where processes leave words for each other: torchrun's own; else the first process keeps one while it lives."""
    from torch.distributed import TCPStore

    environment = launch.environment()
    port, hosts = environment.main_port, False
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        port, hosts = port - 5000, launch.rank == 0  # the port itself is for the process group
    return TCPStore(environment.main_address, port, is_master=hosts, wait_for_workers=False)
