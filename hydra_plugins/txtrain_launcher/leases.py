"""Leases on the devices of this machine: a job has its devices for itself until it ends."""

import os
from dataclasses import dataclass

from omegaconf import DictConfig

from txtrain.devices import accelerator_kind, cores, count_devices, device_numbers, devices_here


@dataclass(frozen=True, kw_only=True)
class Request:
    """The devices that a job asks for.

    Args:
        kind: cpu, cuda or mps.
        count: how many.
        numbers: which ones, if it matters.
    """

    kind: str
    count: int
    numbers: tuple[int, ...] = ()

    @staticmethod
    def of(config: DictConfig) -> "Request":
        """Raises a UserError if this machine has fewer."""
        kind, devices = accelerator_kind(config.trainer.accelerator), config.trainer.devices
        return Request(kind=kind, count=count_devices(kind, devices), numbers=tuple(device_numbers(devices)))


class Leases:
    """Which devices of a kind are free.

    Args:
        kind: cpu, cuda or mps; the devices of a CPU are processes that its cores are good for.
        most: how many leases may run at once; None: as many as there are GPUs for, and one on CPUs, whose cores a
            single job uses all.
    """

    def __init__(self, *, kind: str, most: int | None) -> None:
        self.kind = kind
        self.free = list(range(devices_here(kind)))
        self.there = len(self.free)
        self.most = most or (1 if kind == "cpu" else self.there)

    def take(self, request: Request) -> list[int] | None:
        """Devices for a job, None if it has to wait."""
        wanted = list(request.numbers) or self.free[: request.count]
        if len(wanted) < request.count or not set(wanted) <= set(self.free):
            return None
        self.free = [number for number in self.free if number not in wanted]
        return wanted

    def give_back(self, lease: list[int]) -> None:
        self.free = sorted(self.free + lease)

    def at_once(self, request: Request) -> int:
        """How many jobs that ask for as much can run side by side."""
        return max(1, min(self.most, self.there // request.count))

    def environment(self, request: Request, lease: list[int], *, jobs: int) -> dict[str, str]:
        """What shows a job its devices: GPUs of its own, or its share of the cores when `jobs` jobs divide them."""
        if self.kind == "cuda" and not request.numbers:  # numbers count the GPUs that all jobs see
            names = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(self.there)))).split(",")
            return {"CUDA_VISIBLE_DEVICES": ",".join(names[number].strip() for number in lease)}
        beside = min(jobs, self.at_once(request))
        if self.kind == "cpu" and beside > 1 and "OMP_NUM_THREADS" not in os.environ:
            return {"OMP_NUM_THREADS": str(max(1, cores() // (beside * request.count)))}
        return {}
