"""What is told before anything is read, and what DeepSpeed's strategies accept."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate

from txtrain.errors import UserError
from txtrain.optim import Muon, adamw
from txtrain.strategy import DDP, FSDP, DeepSpeed, OneDevice, auto, check_optimizer, choose_strategy, zero

STRATEGIES = {path.stem: path for path in (Path(__file__).parents[2] / "conf" / "strategy").glob("*.yaml")}


def build(name, **changes):
    node = yaml.safe_load(STRATEGIES[name].read_text())
    if changes:
        node["zero_optimization"] |= changes
    return choose_strategy(instantiate(node, _convert_="all"), accelerator="cpu", devices=2)


@pytest.fixture
def eight_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


@pytest.mark.parametrize(
    "name, kind",
    [("auto", DDP), ("ddp", DDP), ("fsdp", FSDP)]
    + [(f"deepspeed_zero{stage}", DeepSpeed) for stage in ("1", "2", "3", "3_offload")],
)
def test_each_option_is_a_strategy(name, kind):
    strategy = build(name)
    assert type(strategy) is kind
    if kind is DeepSpeed:
        assert strategy.config["zero_optimization"]["stage"] == int(name.removesuffix("_offload")[-1])


def test_no_option_is_untested():
    assert len(STRATEGIES) == 7


def test_auto_needs_no_communication_on_one_device(eight_gpus):
    assert type(choose_strategy(auto, accelerator="cpu", devices="auto")) is OneDevice
    assert type(choose_strategy(auto, accelerator="gpu", devices=1)) is OneDevice
    assert isinstance(choose_strategy(auto, accelerator="gpu", devices=1, num_nodes=2), DDP)
    assert isinstance(choose_strategy(auto), DDP)  # all eight


@pytest.mark.parametrize("name", ["deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero3", "deepspeed_zero3_offload"])
def test_muon_is_refused_under_zero(name):
    strategy = build(name)
    check_optimizer(partial(adamw, lr=1e-3), strategy)
    with pytest.raises(UserError, match=r"optimizer=muon.*strategy=ddp or strategy=fsdp"):
        check_optimizer(partial(Muon, lr=1e-3), strategy)


@pytest.mark.parametrize("name", ["auto", "ddp", "fsdp"])
def test_muon_is_accepted_elsewhere(name):
    check_optimizer(partial(Muon, lr=1e-3), build(name))
    check_optimizer(partial(Muon, lr=1e-3), "auto")


@pytest.mark.parametrize(
    "change",
    [
        {"zero_hpz_partition_size": 8},
        {"offload_param": {"device": "nvme", "nvme_path": "/local_nvme", "buffer_count": 4}},
        {"reduce_bucket_size": 1_000_000, "overlap_comm": False},
        {"stage3_gather_16bit_weights_on_model_save": True},
    ],
)
def test_deepspeeds_levers_are_reached_by_their_own_names(monkeypatch, change):
    monkeypatch.setattr("deepspeed.ops.op_builder.AsyncIOBuilder.is_compatible", lambda builder: True)
    section = build("deepspeed_zero3", **change).config["zero_optimization"]
    assert {key: section[key] for key in change} == change


@pytest.mark.parametrize(
    "change, words",
    [
        ({"reduce_buckets": 1}, r"strategy\.zero_optimization\.reduce_buckets is 1"),
        ({"stage": 4}, r"strategy\.zero_optimization\.stage is 4"),
        ({"offload_param": {"device": "disk"}}, r"strategy\.zero_optimization\.offload_param\.device is disk"),
        ({"zero_quantized_weights": True}, r"zero_quantized_weights=true needs GPUs.*type .*=false"),
        ({"zero_quantized_gradients": True}, r"zero_quantized_gradients=true needs GPUs.*type .*=false"),
        ({"offload_param": {"device": "nvme"}}, r"offload_param\.device=nvme has no folder: type .*nvme_path=FOLDER"),
        ({"offload_optimizer": {"device": "nvme", "nvme_path": "/disk"}}, r"needs libaio.*apt install libaio-dev"),
    ],
)
def test_levers_that_deepspeed_does_not_have_here(monkeypatch, change, words):
    monkeypatch.setattr("deepspeed.ops.op_builder.AsyncIOBuilder.is_compatible", lambda builder: False)
    with pytest.raises(UserError, match=words) as error:
        build("deepspeed_zero3", **change)
    assert "\n" not in str(error.value)


def test_without_deepspeed(monkeypatch):
    monkeypatch.setattr(zero.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"strategy=deepspeed_.* needs DeepSpeed.*pip install deepspeed"):
        build("deepspeed_zero2")
    monkeypatch.setattr(zero.sys, "platform", "darwin")
    with pytest.raises(UserError, match="strategy=fsdp"):
        build("deepspeed_zero2")


def test_ninja_of_the_environment_is_found(monkeypatch, tmp_path):
    """An environment's python may run without its folder on PATH."""
    ninja = tmp_path / "ninja"
    ninja.write_text("#!/bin/sh\n")
    ninja.chmod(0o755)
    monkeypatch.setattr(zero.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", os.defpath if shutil.which("ninja", path=os.defpath) is None else "/nowhere")
    build("deepspeed_zero2")
    assert shutil.which("ninja") == str(ninja)
