"""The devices that a run asks for, and those that the jobs of a sweep are given."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hydra_plugins.txtrain_launcher.leases import Leases, Request
from txtrain.devices import accelerator_kind, count_devices, machine_memory
from txtrain.errors import UserError
from txtrain.train import check_memory


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    "devices, count", [("auto", 8), (-1, 8), ("-1", 8), (1, 1), (8, 8), ("4", 4), ("0,7", 2), ([3, 4, 5], 3)]
)
def test_devices_are_counted_as_lightning_does(eight_gpus: None, devices: Any, count: int) -> None:
    assert count_devices("cuda", devices) == count


@pytest.mark.parametrize("devices", [9, "9", "0,8", [8], 0, -2, "two", [], [-1], "-1,2"])
def test_devices_that_are_not_there(eight_gpus: None, devices: Any) -> None:
    with pytest.raises(UserError, match=r"trainer\.devices.*type .*") as error:
        count_devices("cuda", devices)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("devices", [-1, "-1", [0], [0, 1], "0,1", [-1]])
def test_gpus_are_not_asked_for_on_a_cpu(devices: Any) -> None:
    with pytest.raises(
        UserError, match=r"trainer\.devices=.* means GPUs, .*: type how many, such as trainer\.devices=1$"
    ):
        count_devices("cpu", devices)


def test_two_processes_share_a_core_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txtrain.devices.cores", lambda: 4)
    assert count_devices("cpu", "auto") == 1
    assert count_devices("cpu", 8) == 8
    with pytest.raises(
        UserError, match=r"trainer\.devices=9 is more than the 4 CPU cores.*trainer\.devices=8 or fewer"
    ):
        count_devices("cpu", 9)


def test_an_accelerator_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"trainer\.accelerator=cuda finds no such device here"):
        accelerator_kind("cuda")
    with pytest.raises(UserError, match=r"trainer\.accelerator is tpu"):
        accelerator_kind("tpu")


def gpus(count: int, *numbers: int) -> Request:
    return Request(kind="cuda", count=count, numbers=numbers)


def visible(leases: Leases, request: Request, lease: list[int]) -> str | None:
    return leases.environment(request, lease, jobs=9).get("CUDA_VISIBLE_DEVICES")


def test_a_job_has_gpus_of_its_own_until_it_ends(eight_gpus: None) -> None:
    leases = Leases(kind="cuda", most=None)
    assert (leases.most, leases.at_once(gpus(3)), leases.at_once(gpus(8))) == (8, 2, 1)
    first, second = leases.take(gpus(3)) or [], leases.take(gpus(4)) or []
    assert (first, second) == ([0, 1, 2], [3, 4, 5, 6])
    assert leases.take(gpus(2)) is None
    assert leases.take(gpus(1)) == [7]
    assert visible(leases, gpus(4), second) == "3,4,5,6"
    leases.give_back(first)
    assert leases.take(gpus(2)) == [0, 1]


def test_a_job_that_names_its_gpus_waits_for_those(eight_gpus: None) -> None:
    leases = Leases(kind="cuda", most=None)
    lease = leases.take(gpus(2, 1, 5)) or []
    assert lease == [1, 5]
    assert leases.take(gpus(1, 5)) is None
    assert visible(leases, gpus(2, 1, 5), lease) is None  # its numbers count from the first of all
    assert leases.take(gpus(3)) == [0, 2, 3]


@pytest.mark.parametrize("names", ["2,3,6", "GPU-a,GPU-b,GPU-c"])
def test_jobs_share_the_gpus_that_the_sweep_may_see(names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
    leases = Leases(kind="cuda", most=None)
    given = [visible(leases, gpus(count), leases.take(gpus(count)) or []) for count in (1, 2)]
    assert ",".join(map(str, given)) == names


def test_no_more_jobs_at_once_than_typed(eight_gpus: None) -> None:
    leases = Leases(kind="cuda", most=3)
    assert (leases.most, leases.at_once(gpus(1)), leases.at_once(gpus(4))) == (3, 3, 2)


def test_jobs_on_cpus_divide_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txtrain.devices.cores", lambda: 16)
    monkeypatch.setattr("hydra_plugins.txtrain_launcher.leases.cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    one, two = (Request(kind="cpu", count=count) for count in (1, 2))
    assert Leases(kind="cpu", most=None).most == 1
    alone, four = Leases(kind="cpu", most=1), Leases(kind="cpu", most=4)
    assert alone.environment(one, [0], jobs=9) == {}  # all of them, as outside of a sweep
    assert four.environment(one, [0], jobs=9) == {"OMP_NUM_THREADS": "4"}
    assert four.environment(two, [0, 1], jobs=9) == {"OMP_NUM_THREADS": "2"}
    assert four.environment(one, [0], jobs=2) == {"OMP_NUM_THREADS": "8"}
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert four.environment(one, [0], jobs=9) == {}


V2, V1 = "sys/fs/cgroup/{}memory.max", "sys/fs/cgroup/memory/{}memory.limit_in_bytes"


@pytest.mark.parametrize(
    "groups, limits, memory",
    [
        ("0::/\n", {}, None),
        ("0::/\n", {V2.format(""): "1000\n"}, 1000),  # in a container
        ("0::/\n", {V2.format(""): "max\n"}, None),
        ("0::/job/step\n", {V2.format("job/step/"): "max\n", V2.format("job/"): "3000\n"}, 3000),  # of a level above
        ("0::/job/step\n", {V2.format("job/step/"): "2000\n", V2.format("job/"): "3000\n"}, 2000),
        ("0::/job/step\n", {V2.format(""): "1000\n"}, 1000),  # a name outside, and a mount that begins at the group
        ("0::/../other\n", {V2.format(""): "1000\n", "sys/fs/other/memory.max": "1\n"}, 1000),
        ("9:cpu,memory:/a:b\n0::/\n", {V1.format("a:b/"): "500\n", V1.format(""): "9223372036854771712\n"}, 500),
        ("9:cpuset:/a\n", {V1.format("a/"): "500\n"}, None),  # of a group that has no memory
        ("0::/a\n", {V2.format("unified/a/"): "700\n"}, 700),
        ("0::/a\n", {V2.format("a/"): "\n"}, None),
        (None, {}, None),  # another system
    ],
)
def test_the_memory_of_a_container_counts(
    tmp_path: Path, groups: str | None, limits: dict[str, str], memory: int | None
) -> None:
    for name, text in ({"proc/self/cgroup": groups} if groups else {}).items() | limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine_memory(tmp_path) == (memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def test_a_model_larger_than_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("txtrain.sizes.machine_memory", lambda: 2**30)
    with torch.device("meta"):
        model = nn.Linear(2**14, 2**14 + 1, bias=False)
    with pytest.raises(UserError, match=r"take 1\.0 GiB, and this machine, or its container, has 1\.0 GiB"):
        check_memory(model, "32-true")
    check_memory(model, "bf16-true")
