"""A model is made once on each machine, and read with no more memory than it takes itself."""

import json
import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.interop.random_folders import write_folder
from tests.strategy import cases, worker
from txtrain.model import encoding as encodings
from txtrain.strategy import memory

LOADED = Path(__file__).parent / "loaded.py"
CPU, META = torch.device("cpu"), torch.device("meta")
LORA = [
    {},
    {"rank": 2},
    {"rank": 2, "variant": "dora"},
    {"rank": 2, "init": "pissa"},
    {"rank": 2, "base_dtype": "bfloat16"},
    {"rank": 2, "base_dtype": "nf4"},
    {"rank": 2, "targets": ["embedding.tokens", "q_proj"]},
]


def open_files():
    return len(os.listdir("/proc/self/fd"))


def moved_and_mapped(task):
    """The task's model as a machine's first process has it, and as another has it."""
    task._identify_base = lambda model: None  # which the first process alone reads
    first, other = task._new_model(CPU), task._new_model(META)
    descriptor = os.memfd_create("test")
    memory._move(first, descriptor)
    mine = memory._open(memory._address(descriptor))
    for start, unit in memory._layout(other):
        memory._map(mine, start, unit)
    os.close(descriptor)
    os.close(mine)
    return first, other


@pytest.mark.parametrize("lora", LORA, ids=str)
def test_another_process_has_the_same_weights(lora):
    if lora.get("base_dtype") == "nf4":
        pytest.importorskip("bitsandbytes")
    before = open_files()
    task = worker.new_task("sgd", {"lr": 0.1}, lora=lora)
    whole = task._new_model(CPU)
    first, other = moved_and_mapped(task)
    expected = dict(whole.named_parameters(remove_duplicate=False))
    for model in (first, other):
        mine = dict(model.named_parameters(remove_duplicate=False))
        assert mine.keys() == expected.keys()
        for name, weight in mine.items():
            assert weight.dtype == expected[name].dtype
            assert weight.requires_grad == expected[name].requires_grad
            assert torch.equal(weight, expected[name]), name
        tied = [name for name, weight in mine.items() if weight is model.embedding.tokens.weight]
        assert tied == [name for name, weight in expected.items() if weight is whole.embedding.tokens.weight]
    # What one writes is its own.
    value = first.embedding.tokens.weight.detach().clone()
    with torch.no_grad():
        other.embedding.tokens.weight.zero_()
    assert torch.equal(first.embedding.tokens.weight, value)
    del first, other, mine, weight, model
    assert open_files() == before


@pytest.mark.parametrize("encoding", [name for name in encodings.__all__ if name != "Encoding"])
def test_a_model_has_no_tensors_but_its_parameters(encoding):
    first, other = moved_and_mapped(worker.new_task("sgd", {"lr": 0.1}, encoding=encoding))
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(first.eval()(tokens), other.eval()(tokens))


@pytest.mark.parametrize("hidden", [None, 3])
def test_each_machine_has_one_that_its_first_process_made(monkeypatch, caplog, hidden):
    """Two machines of two; where process 3 cannot see its first one, it makes a model of its own."""
    said, meeting = [None] * 4, threading.Barrier(4)

    def exchange(rank, address):
        said[rank] = address
        meeting.wait(60)
        return said

    def run(rank):
        strategy = SimpleNamespace(
            num_processes=2,
            global_rank=rank,
            local_rank=rank % 2,
            root_device=CPU,
            cuts_weights=True,
            barrier=lambda: meeting.wait(60),
        )
        threading.current_thread().rank = rank

        def make(device):
            with device:
                model = torch.nn.Linear(3, 2)
            if device == CPU:
                torch.nn.init.constant_(model.weight, rank)
            return model

        return memory.made_once(strategy, make)

    opened = memory._open
    monkeypatch.setattr(memory, "_exchange", lambda address: exchange(threading.current_thread().rank, address))
    monkeypatch.setattr(
        memory, "_open", lambda address: None if threading.current_thread().rank == hidden else opened(address)
    )
    before = open_files()
    with caplog.at_level(logging.WARNING), ThreadPoolExecutor(4) as pool:
        values = [model.weight[0, 0].item() for model in pool.map(run, range(4))]
    assert values == [0, 0, 2, hidden or 2]
    assert len(caplog.records) == (hidden is not None)
    assert open_files() == before


def test_a_file_of_that_number_that_is_another_is_not_opened(tmp_path):
    with (tmp_path / "other").open("w") as file:
        assert memory._open((os.getpid(), file.fileno(), 0, 0, 0)) is None
    assert memory._open((os.getpid(), 10**6, 0, 0, 0)) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Llama of bfloat16 in shards, and its bytes in float32."""
    path = tmp_path_factory.mktemp("base")
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "num_attention_heads": 8}
    model = write_folder(path, "llama", **shape, num_key_value_heads=8, max_position_embeddings=64)
    (path / "model.safetensors").unlink()
    for parameter in model.parameters():
        parameter.data *= 0.1
    model.to(torch.bfloat16).save_pretrained(path, max_shard_size="60MB")
    files = set(json.loads((path / "model.safetensors.index.json").read_text())["weight_map"].values())
    assert len(files) == 2
    for name in files:  # what is mapped and not on the disk yet would count as a process's own
        with (path / name).open("rb") as file:
            os.fsync(file.fileno())
    return path, 4 * sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def one(folder, tmp_path_factory):
    path, _ = folder
    steps = [{"folder": str(path), "strategy": "auto", "lora": lora} for lora in (None, {"rank": 4})]
    return cases.run(
        tmp_path_factory.mktemp("one"), 1, [{"action": "peak", "folder": str(path)}, *steps], script=LOADED
    )


@pytest.mark.slow
def test_reading_takes_the_model_and_one_file(folder, one):
    path, size = folder
    largest = max(file.stat().st_size for file in path.glob("*.safetensors"))
    assert size < one[0] < size + 1.1 * largest


def assert_shared(two, alone, size):
    """The same numbers, and no process but the first has had a whole model, which it has no more."""
    assert two["losses"] == pytest.approx(alone["losses"], rel=1e-6)
    first, other = two["processes"]
    assert first["sha256"] == alone["processes"][0]["sha256"]
    assert first["most"] < 1.1 * size
    assert max(first["kept"], other["kept"]) < 0.65 * size
    assert other["most"] < 0.85 * size  # its half, and a block of four


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("deepspeed_zero3", marks=pytest.mark.heavy)])
def test_no_process_but_the_first_has_a_whole_model(folder, one, strategy, tmp_path):
    path, size = folder
    steps = [{"folder": str(path), "strategy": strategy, "lora": lora} for lora in (None, {"rank": 4})]
    for two, alone in zip(cases.run(tmp_path, 2, steps, script=LOADED), one[1:], strict=True):
        assert_shared(two, alone, size)
