"""The end of a run's processes, as it should be whether the run ended well or not."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor

from txtrain.errors import UserError
from txtrain.launch import find_launch

# What a process may take to end by itself, in seconds. One that waits for another in a collective does not.
PATIENCE = 10.0

TELLING = 2.0  # seconds in which the first process meets a mistake that all of them have met

log = logging.getLogger(__name__)


@contextmanager
def ending_processes(trainer: Trainer) -> Iterator[None]:
    """Around all that a trainer does: leaves no process, process group, environment variable or patch of it behind.

    If this process fails, those that Lightning started for the other devices are ended. If one of them does, this one
    ends too, after that one has told its error. Those that torchrun or SLURM started are ended by them.
    """
    environment, linear = dict(os.environ), F.linear
    watch = _Watch(trainer)
    mistakes = _Mistakes()
    watch.start()
    try:
        yield
        if dist.is_initialized():
            dist.barrier()  # the first process is where the others meet, so none leaves before all are done
    except BaseException as error:
        told = watch.first_to_fail() if is_lost(error) else None
        if isinstance(error, UserError):
            error.told = mistakes.are_told(str(error))
        watch.stop()
        _leave(environment, linear)
        asked = isinstance(error, KeyboardInterrupt | SystemExit) and not getattr(error, "agreed", False)
        for child in watch.children:
            _end(child, patience=0 if asked else PATIENCE)
        if told:
            lost = UserError(told)
            lost.told = watch.orphan and os.environ.get("LOCAL_RANK") != "1"  # of those left behind the next one tells
            raise lost from error
        raise
    watch.stop()
    _leave(environment, linear)
    for rank, child in enumerate(watch.children, start=1):
        if code := child.wait():
            raise UserError(_obituary(rank, code))


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached: it has one of its own, or was killed."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


class _Mistakes:
    """Mistakes that all processes of a run meet, such as weights that are not finite: the first one tells them.

    Words for the others are left in the store of the process group, which is kept here until this process has waited
    for those that it started.
    """

    def are_told(self, message: str) -> bool:
        """Whether the first process tells this mistake, so that this one need not; waits a moment for it to do so."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return False
        self._store = dist.distributed_c10d._get_default_store()
        key = f"txtrain/mistake/{hashlib.sha256(message.encode()).hexdigest()}"
        try:
            if dist.get_rank() == 0:
                self._store.set(key, "")
                return False
            deadline = time.monotonic() + TELLING
            while time.monotonic() < deadline:
                if self._store.check([key]):
                    return True
                time.sleep(0.05)
        except RuntimeError:  # whoever kept the store has ended
            pass
        return False


class _Watch(threading.Thread):
    """Looks after the processes that Lightning started, in its stead, which kills this one as soon as one fails.

    Ends this process if another has ended and it does not notice, as where it waits for a GPU that waits for another.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(daemon=True)
        self.trainer, self.children = trainer, list[subprocess.Popen[bytes]]()
        self._done = threading.Event()
        self._parent = os.getppid() if os.environ.get("LOCAL_RANK", "0") != "0" else None
        self._lock = threading.Lock()

    def run(self) -> None:
        while not self._done.wait(1.0):
            self._take_over()
            if (self.orphan or self._dead()) and not self._done.wait(2 * PATIENCE):
                log.error("%s", self._dead() or self._parents_end())
                for child in self.children:
                    child.kill()
                os._exit(1)

    @property
    def orphan(self) -> bool:
        """Whether the process that started this one for another device has ended."""
        return self._parent not in (None, os.getppid())

    def stop(self) -> None:
        self._take_over()
        self._done.set()

    def first_to_fail(self) -> str:
        """Which process ended and how, for one that has lost another; waits until that one has told its error."""
        self._take_over()
        deadline = time.monotonic() + (2 * PATIENCE if self.children else PATIENCE / 2)
        while time.monotonic() < deadline:
            time.sleep(0.1)
            if self.children and (told := self._dead()):
                return told
            if self.orphan:
                return self._parents_end()
        return "another process of this run has ended: if nothing above says why, it was killed (out of memory?)"

    def _parents_end(self) -> str:
        """How the process ended that started this one: if it had failed, it would have waited for this one."""
        starter = find_launch().starter
        first = "the process of device 0, which started this one," if starter == "python" else starter
        return f"{first} was ended without a word: it was killed (a machine out of memory does that)"

    def _take_over(self) -> None:
        with self._lock:
            processes = getattr(self.trainer.strategy.launcher, "procs", [])
            self.children += processes
            processes.clear()

    def _dead(self) -> str | None:
        codes = {rank: child.poll() for rank, child in enumerate(self.children, start=1)}
        return next((_obituary(rank, code) for rank, code in codes.items() if code), None)


def _obituary(rank: int, code: int) -> str:
    if code > 0:
        return f"the process of device {rank} has failed with exit code {code}: see its error above"
    why = " (a machine out of memory does that)" if code == -signal.SIGKILL else ""
    return f"the process of device {rank} was ended by {signal.Signals(-code).name}{why}"


def _end(child: subprocess.Popen[bytes], *, patience: float) -> None:
    for end in (child.terminate, child.kill):
        try:
            child.wait(patience)
            return
        except subprocess.TimeoutExpired:
            end()
    child.wait()


def _leave(environment: dict[str, str], linear: Callable[..., Tensor]) -> None:
    """Ends the process group, and forgets LOCAL_RANK and the like, by which a next run would think itself a child."""
    F.linear = linear  # DeepSpeed's stage 3 puts another in its place, for all models
    if dist.is_initialized():
        # DeepSpeed holds groups of its own: what it does not forget here would be a next run's, and no longer there.
        deepspeed = sys.modules.get("deepspeed.comm")
        (deepspeed if deepspeed and deepspeed.is_initialized() else dist).destroy_process_group()
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
