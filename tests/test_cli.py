"""The commands in real processes: what they answer to mistakes, and what they leave behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forked
from tests.stand_in import ENVIRONMENT, ROOT, make_clone, run, seen
from txtrain.cli import main
from txtrain.config import config_directory, groups, options


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clone(tmp_path_factory.mktemp("clone"))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["norm=preee"], "norm=preee does not exist (did you mean norm=pre?): norm is one of deepnorm, "),
        (["nrom=pre"], "nrom is no key of this config: did you mean norm?"),
        (["lora.rnk=8"], "lora.rnk is no key of this config: did you mean lora.rank?"),
        (["loar.rank=8"], "loar.rank is no key of this config: did you mean lora.rank?"),
        (["max_steps=8"], "max_steps is no key of this config: type trainer.max_steps=8"),
        (["encoding=alibi", "encoding.theta=3"], "encoding.theta is no key of the chosen option: type encoding=rope"),
        (["+lora.rnk=8"], "lora.rnk is no key of this config: did you mean lora.rank?"),
        (["+foo=8"], "foo is no key of this config: "),
        (["lora=8"], "lora=8 does not exist: lora is one of default"),
        (["norm=null"], "norm=null does not exist: norm is one of deepnorm, "),
        (["norm=pre,post"], "norm has several values: add -m to sweep over them, or type norm=[pre,post] for a list"),
        (["lora.rank=range(1,3)"], "lora.rank=range(1,3) has several values: add -m to sweep over them"),
        (["norm"], "'norm' is no override: type key=value"),
        (["name=a=b"], "name=a=b has signs that Hydra's grammar takes to mean something: type \"name='a=b'\""),
        (["--norm", "pre"], "--norm is no flag: options are typed without dashes, such as norm=pre (see --help)"),
        (["--seed=1"], "--seed=1 is no flag: options are typed without dashes, such as seed=1; in a sweep of W&B the "),
        (["--cfg", "all-of-it"], "argument --cfg/-c: invalid choice: 'all-of-it'"),
        (["-m", "--cfg", "job"], "Only one of --run, --multirun, --cfg"),
        (["seed=${nothing}"], "seed cannot be resolved (Interpolation key 'nothing' not found): type seed=VALUE"),
        (["lora.rank=eight"], "lora.rank must be an int, got 'eight': type lora.rank=8"),
        (["norm.layer=rmsnrm"], "norm.layer must be one of layernorm, rmsnorm, got 'rmsnrm': type norm.layer=rmsnorm"),
        (["data=text"], "data.path is needed and has no default: type data.path=VALUE"),
        (["-m", "norm=pre,postt"], "norm=postt does not exist (did you mean norm=post?): "),
        (["norm=pre,post", "-m", "lora.rank=eight"], "lora.rank must be an int, got 'eight': type lora.rank=8"),
        (["-m", "norm=pre,post", "run_dir=x"], "run_dir and resume mean one run, not a sweep"),
    ],
)
def test_a_mistake_is_one_line_within_seconds_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    command = [sys.executable, ROOT / "train.py", *arguments]
    result = forked.run(command, cwd=tmp_path, env=ENVIRONMENT | {"OMP_NUM_THREADS": "1"}, timeout=120)
    assert result.stderr.startswith(f"error: {message}")
    assert (result.returncode, result.stderr.count("\n"), result.stdout) == (1, 1, "")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["notes.txt"]


def test_a_mistake_in_the_command_line_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    script = f"""
import sys
sys.argv = ["train.py", "norm=preee"]
sys.path.insert(0, {str(ROOT)!r})
from txtrain.cli import main
code = main(["train", "norm=preee"])
sys.exit(10 * code + bool({{"torch", "lightning"}} & set(sys.modules)))
"""
    entry = tmp_path / "train.py"
    entry.write_text(script)
    assert run(tmp_path, entry).returncode == 10


def test_a_users_mistake_in_training_is_one_line(clone: Path, tmp_path: Path) -> None:
    result = run(tmp_path, clone, "seed=2")
    assert (result.returncode, result.stderr) == (1, "error: seed=2 cannot be: type seed=0\n")


def test_a_bug_keeps_its_traceback(clone: Path, tmp_path: Path) -> None:
    result = run(tmp_path, clone, "seed=1")
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("RuntimeError: exploded\n")


def test_a_run_gets_its_overrides_after_hydra_is_done(clone: Path, tmp_path: Path) -> None:
    result = run(tmp_path, clone, "model.dropout=0.5", "name=x${seed}")
    given = seen(result.stdout)
    assert (given["overrides"], given["dropout"]) == (["model.dropout=0.5", "name=x${seed}"], 0.5)
    assert given["torch"] is False  # which a mistake that is told before this need not wait for
    assert given["hydra"] is False  # or Lightning would start other ranks by Hydra's rules
    assert not list(tmp_path.iterdir())


def test_a_further_rank_goes_to_the_run_of_the_first(clone: Path, tmp_path: Path) -> None:
    ranks = {"LOCAL_RANK": "1", "TXTRAIN_RUN_DIR": str(tmp_path / "run")}
    assert seen(run(tmp_path, clone, "model.dropout=0.5", **ranks).stdout)["run_dir"] == str(tmp_path / "run")
    first = run(tmp_path, clone, "model.dropout=0.5", **ranks | {"LOCAL_RANK": "0"})
    assert seen(first.stdout)["run_dir"] is None


def test_all_ranks_resume_with_the_saved_config_and_what_was_typed(clone: Path, tmp_path: Path) -> None:
    saved = {"name": "gpt", "seed": 0, "run_dir": "run", "resume": None, "init_from": None}
    saved |= {"model": {"_target_": "txtrain.train.Model", "dropout": 0.25}}
    saved |= {"trainer": {"_target_": "txtrain.train.Trainer", "accelerator": "cpu", "devices": 1, "num_nodes": 1}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(json.dumps(saved))
    for environment in ({}, {"LOCAL_RANK": "1", "TXTRAIN_RUN_DIR": "run"}):
        given = seen(run(tmp_path, clone, "resume=run", **environment).stdout)
        assert (given["dropout"], given["resume"], given["run_dir"]) == (0.25, "run", "run")
    refused = run(tmp_path, clone, "resume=run", "model.dropout=0.5")
    assert refused.stderr.startswith("error: model.dropout=0.5 would change what the resumed run trains")


def test_an_interrupt_is_quiet(clone: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, str(clone), "seed=3"], cwd=tmp_path, stdout=file, stderr=file)
    while "\nprocesses" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    rank = int(log.read_text().split()[-1])
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    os.kill(rank, signal.SIGKILL)
    assert log.read_text().splitlines()[-1].startswith("processes")


@pytest.mark.parametrize("start", [[str(ROOT / "train.py")], ["-m", "txtrain", "train"]])
def test_both_ways_to_start_show_the_config(start: list[str], tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, *start, "norm=post", "--cfg", "job", "seed=7"],  # flags may stand between overrides
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "seed: 7\n" in result.stdout
    assert "txtrain.model.norm" in result.stdout


def test_help_is_one_screen_with_every_group_that_has_a_choice(tmp_path: Path) -> None:
    text = run(tmp_path, ROOT / "train.py", "--help").stdout
    assert len(text.splitlines()) <= 50
    assert max(map(len, text.splitlines())) <= 120
    for group in groups(config_directory()):
        names = options(config_directory(), group)
        if len(names) > 1:
            assert f"  {group} " in text
            assert all(name in text for name in names)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_who_reads_the_output_leaves_before_it_comes(arguments: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "txtrain", *arguments]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, cwd=ROOT, timeout=60)
    os.close(writes)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_an_unknown_command_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: txtrain has no command trian: type txtrain train or audit or ")
    assert told.count("\n") == 1


def test_without_a_command_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    assert "  train " in capsys.readouterr().out


@pytest.mark.parametrize("end, code", [("return 3", 3), ("sys.exit(4)", 4), ("sys.exit('told')", 1), ("1 / 0", 1)])
def test_a_process_ends_in_order_but_takes_nothing_down(end: str, code: int) -> None:
    """What Python ends by itself (threads, functions for its exit, buffers) is there; what it would free is not."""
    program = f"""
import atexit, sys, threading, time
from txtrain import cli

class Freed:
    def __del__(self):
        print("freed")

def main(argv):
    sys.held = Freed()
    atexit.register(print, "at exit")
    threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
    {end}

cli.main = main
cli.start()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (code, "thread\nat exit\n")
