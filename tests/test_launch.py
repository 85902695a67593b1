"""Runs that torchrun or SLURM starts."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.test_resume import ONE, ROOT, TINY, TWO, finish, rows, start
from tests.test_stopping import check_same, trained, wait_until
from txtrain.errors import UserError
from txtrain.launch import Launch, find_launch, slurm_job, slurm_restarted

SETTINGS = [setting for setting in TINY if not setting.startswith("model.dropout")]  # masks differ by rank
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "RANK": "11", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "16"}
OWN = ["norm._target_=own_package.Own", "trust=[own_package]"]  # a class of the user's
SRUN = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "6", "SLURM_NNODES": "2"}


@pytest.mark.parametrize(
    "environment, launch",
    [
        ({}, Launch()),
        ({"LOCAL_RANK": "2"}, Launch(rank=2)),
        (TORCHRUN, Launch(starter="torchrun", rank=11, devices=8, nodes=2)),
        (SRUN, Launch(starter="srun", rank=5, devices=3, nodes=2)),
        (SRUN | TORCHRUN, Launch(starter="torchrun", rank=11, devices=8, nodes=2)),
        (SRUN | {"LOCAL_RANK": "1"}, Launch(rank=1)),  # started by Lightning in a task of SLURM
        (SRUN | {"SLURM_JOB_NAME": "bash"}, Launch()),  # typed into a shell that SLURM has opened
        ({"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, Launch()),  # in a batch script, without srun
    ],
)
def test_who_started_this_process(environment: dict[str, str], launch: Launch) -> None:
    assert find_launch(environment) == launch


def test_the_name_that_a_job_of_slurm_keeps() -> None:
    assert slurm_job({}) is None
    assert slurm_job({"SLURM_JOB_ID": "7"}) == "7"
    assert slurm_job({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}) == "7_2"
    assert slurm_job({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "bash"}) is None
    assert not slurm_restarted({"SLURM_JOB_ID": "7"})
    assert slurm_restarted({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})


@pytest.mark.parametrize("typed, devices", [([], "auto"), ([], 4), (["trainer.devices=8"], 8), (["norm=pre"], [0, 1])])
def test_the_starter_says_how_many_devices_there_are(typed: list[str], devices: object) -> None:
    trainer = OmegaConf.create({"devices": devices, "num_nodes": 1})
    Launch(starter="srun", devices=8, nodes=2).agree(trainer, typed)
    assert trainer == {"devices": 8, "num_nodes": 2}


def test_other_numbers_than_the_starters_are_refused() -> None:
    trainer = OmegaConf.create({"devices": 4, "num_nodes": 2})
    with pytest.raises(UserError, match=r"trainer\.devices=4, but srun has started 2 × 8 processes"):
        Launch(starter="srun", devices=8, nodes=2).agree(trainer, ["trainer.devices=4"])
    with pytest.raises(UserError, match=r"trainer\.num_nodes=2 needs a process on each machine"):
        Launch().agree(trainer, [])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_nodes(folder: Path, *overrides: str, nodes: int = 2) -> list[subprocess.Popen[bytes]]:
    """So many machines, of two processes together, on this one."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    environment |= {"NODES": str(nodes), "DEVICES": str(2 // nodes), "MASTER_PORT": str(free_port())}
    processes = []
    for node in map(str, range(nodes)):
        with (folder / f"node{node}.txt").open("w") as output:
            processes.append(
                subprocess.Popen(
                    [ROOT / "scripts/torchrun.sh", *overrides],
                    cwd=folder,
                    env=environment | {"NODE_RANK": node},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's package, which every process can import and none loads unless it is trusted there."""
    text = "from txtrain.model.norm.pre import PreNorm\nclass Own(PreNorm):\n    pass\n"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own_package.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"), prepend=os.pathsep)


@pytest.mark.slow
@pytest.mark.usefixtures("own_package")
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("deepspeed_zero2", marks=pytest.mark.heavy)])
def test_two_nodes_are_one_run_with_the_numbers_of_one(strategy: str, tmp_path: Path) -> None:
    """Each process that torchrun or Lightning starts trusts what was typed for the first."""
    if "deepspeed" in strategy:
        pytest.importorskip("deepspeed")
    settings = [*SETTINGS, *OWN, f"strategy={strategy}", f"data.cache_dir={tmp_path / 'cache'}"]
    codes = [process.wait(timeout=240) for process in start_nodes(tmp_path, *settings)]
    assert codes == [0, 0], (tmp_path / "node0.txt").read_text() + (tmp_path / "node1.txt").read_text()
    [run_dir] = (tmp_path / "runs/gpt").iterdir()
    saved = OmegaConf.load(run_dir / "config.yaml")
    assert (saved.trainer.devices, saved.trainer.num_nodes) == (1, 2)
    assert "step 12/12" not in (tmp_path / "node1.txt").read_text()
    finish(tmp_path, "run_dir=one_node", *settings, *TWO)
    assert rows(run_dir) == rows(tmp_path / "one_node")


@pytest.mark.slow
def test_one_node_is_told_to_end_and_both_do(tmp_path: Path) -> None:
    settings = [*SETTINGS, "strategy=ddp", f"data.cache_dir={tmp_path / 'cache'}", "run_dir=run", "save.every=10000"]
    nodes = start_nodes(tmp_path, *settings, "trainer.max_steps=10000")
    wait_until(lambda: trained(tmp_path / "run") >= 2, nodes[0])
    nodes[1].send_signal(signal.SIGTERM)
    for node in nodes:
        node.wait(timeout=60)
    outcome = json.loads((tmp_path / "run/summary.json").read_text())
    assert (outcome["state"], outcome["stopped"]) == ("interrupted", "told to end by SIGTERM")
    assert (tmp_path / "run/checkpoints/last").resolve().name == f"step_{outcome['steps']:08d}.ckpt"
    assert "exitcode  : 143" in (tmp_path / "node0.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("mistake", ["data.path=nowhere.txt", "nrm=pre"])
def test_a_mistake_is_told_by_the_first_process_only(mistake: str, nodes: int, tmp_path: Path) -> None:
    """All end by it at once: torchrun on a machine whose processes ended in order would wait for the others."""
    started = start_nodes(tmp_path, *SETTINGS, f"data.cache_dir={tmp_path / 'cache'}", mistake, nodes=nodes)
    assert [process.wait(timeout=120) for process in started] == [1] * nodes
    told = [(tmp_path / f"node{node}.txt").read_text().count("error: ") for node in range(nodes)]
    assert told == [1, 0][:nodes]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("own_package")
def test_a_job_of_slurm_is_queued_again_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SLURM does it, without one: the variables, the signal before time is over, and the same command again."""
    scontrol = tmp_path / "bin/scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" $(ls runs/gpt/42/checkpoints) >> requeued.txt\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    command = [*TINY, *ONE, *OWN, "save.every=100", f"data.cache_dir={tmp_path / 'cache'}"]
    finish(tmp_path, "run_dir=whole", *command)

    run_dir = tmp_path / "runs/gpt/42"
    job = start(tmp_path, *command)
    wait_until(lambda: trained(run_dir) >= 6, job)
    job.send_signal(signal.SIGUSR1)
    assert job.wait(timeout=60) == 138
    step = json.loads((run_dir / "summary.json").read_text())["steps"]
    assert (tmp_path / "requeued.txt").read_text().startswith("requeue 42 ")
    assert f"step_{step:08d}.ckpt" in (tmp_path / "requeued.txt").read_text()

    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    finish(tmp_path, *command)
    assert f"going on from step {step}" in (tmp_path / "output.txt").read_text()
    check_same(run_dir, tmp_path / "whole")
    assert [path.name for path in (tmp_path / "runs/gpt").iterdir()] == ["42"]


@pytest.mark.slow
def test_a_job_that_saved_nothing_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    command = [*TINY, *ONE, "save.every=100", f"data.cache_dir={tmp_path / 'cache'}", "trainer.max_steps=4"]
    run_dir = tmp_path / "runs/gpt/42"
    job = start(tmp_path, *command)
    wait_until(lambda: trained(run_dir) >= 1, job)
    job.kill()
    job.wait()
    assert not (run_dir / "checkpoints/last").exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    finish(tmp_path, *command)
    assert [row["step"] for row in rows(run_dir) if "train/loss" in row] == [1, 2, 3, 4]
