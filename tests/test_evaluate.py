"""`txtrain eval` finds the loss that the run had, on any number of devices, and tells the loss by length of context."""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests import forked
from txtrain.cli import main
from txtrain.compare.sweep import Sweep
from txtrain.evaluate.plot import plot
from txtrain.evaluate.result import Bucket, Result, edges
from txtrain.evaluate.sweeps import expand_sweeps
from txtrain.trained import load_trained

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "tests" / "golden" / "text.txt"
RUN = [
    "data=text",
    f"data.path={TEXT}",
    "data.seq_len=32",
    "logger=none",
    "trainer.accelerator=cpu",
    "samples.length=0",
]
TINY = ["tokenizer=char", "model.dim=32", "model.num_layers=1", "trainer.max_steps=6"]
ALIKE = {"rel": 1e-9, "abs": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs: one whose last step is not its best, one with adapters on it, and one with a table of positions."""
    folder = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        saving = ["save.every=3", "trainer.val_check_interval=3", "schedule=constant", "optimizer.lr=0.3"]
        assert main(["train", *RUN, *TINY, *saving, "run_dir=rope", "trainer.limit_val_batches=3"]) == 0
        assert main(["train", *RUN, "init_from=rope", "lora.rank=4", "trainer.max_steps=4", "run_dir=adapted"]) == 0
        assert main(["train", *RUN, *TINY, "encoding=learned", "run_dir=learned"]) == 0
    return folder


@pytest.fixture
def evaluate(folder, monkeypatch):
    """Runs the command there, and returns the records that it wrote."""
    monkeypatch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)

    def evaluate(*arguments, code=0):
        Path("found.json").unlink(missing_ok=True)
        assert main(["eval", *arguments, "trainer.accelerator=cpu", "--json", "found.json"]) == code
        return [] if code else [json.loads(line) for line in Path("found.json").read_text().splitlines()]

    return evaluate


def validations(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "validation/loss" in row}


def by_hand(model, *, text, length):
    """Sum of cross-entropies, right guesses and targets, of each position of windows that share one token."""
    trained = load_trained(model)
    end = trained.tokenizer.end_of_text
    stream = torch.tensor([end, *trained.tokenizer.encode(text), end])
    entropy, right, targets = torch.zeros(length, dtype=torch.float64), 0, torch.zeros(length)
    for start in range(0, len(stream) - 1, length):
        window = stream[start : start + length + 1]
        logits = trained.model(window[None, :-1])[0].double()
        found = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
        entropy[: len(found)] += found
        targets[: len(found)] += 1
        right += int((logits.argmax(-1) == window[1:]).sum())
    return entropy, right, targets


def test_a_run_has_the_loss_that_it_had(folder, evaluate):
    """With its own data, and with as many of them; a checkpoint has that of its step, the run that of its best."""
    had = validations(folder / "rope")
    found = evaluate("rope", "rope/checkpoints/last", "rope/checkpoints/step_00000003.ckpt")
    best = min(had.values(), key=lambda row: row["validation/loss"])
    for record, row in zip(found, (best, had[6], had[3]), strict=True):
        for name in ("loss", "perplexity", "bits_per_byte"):
            assert record[name] == pytest.approx(row[f"validation/{name}"], **ALIKE)
    assert found[1]["loss"] != found[2]["loss"]
    [whole] = evaluate("rope", "trainer.limit_val_batches=1.0")
    assert whole["tokens"] > found[0]["tokens"] == 3 * 16 * 32


def test_adapters_count(folder, evaluate):
    """They are merged, which rounds otherwise."""
    [found] = evaluate("adapted/checkpoints/last")
    assert found["loss"] == pytest.approx(validations(folder / "adapted")[4]["validation/loss"], rel=1e-5)


def test_other_text_is_evaluated_as_a_whole_by_the_model_s_tokenizer(folder, evaluate):
    text = "def main():\n    return 'zażółć'\n" * 20  # with characters that the tokenizer never saw
    (folder / "other.txt").write_text(text)
    [found] = evaluate("rope", "data=text", "data.path=other.txt", "data.batch_size=4", "--by-position")
    entropy, right, targets = by_hand(folder / "rope", text=text, length=32)
    assert found["tokens"] == targets.sum() == len(text) + 1
    assert found["loss"] == pytest.approx(float(entropy.sum() / targets.sum()), rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_byte"] == pytest.approx(float(entropy.sum()) / math.log(2) / len(text.encode()), rel=1e-6)
    assert found["accuracy"] == right / found["tokens"]
    [part] = evaluate("rope", "data=text", "data.path=other.txt", "data.validation_fraction=0.5")
    assert part["tokens"] == len(text) / 2 + 1


def test_longer_windows_tell_the_loss_beyond_training(folder, evaluate, capsys):
    text = TEXT.read_text()[:700]
    (folder / "long.txt").write_text(text)
    arguments = ["data=text", "data.path=long.txt", "data.seq_len=96", "--plot", "loss.png"]
    [found, other] = evaluate("rope", "learned", "adapted", *arguments)
    entropy, _, targets = by_hand(folder / "rope", text=text, length=96)
    assert [(bucket["from"], bucket["to"]) for bucket in found["by_position"]][-3:] == [(33, 48), (49, 64), (65, 96)]
    for bucket in found["by_position"]:
        place = slice(bucket["from"] - 1, bucket["to"])
        assert bucket["tokens"] == targets[place].sum()
        assert bucket["loss"] == pytest.approx(float(entropy[place].sum() / targets[place].sum()), rel=1e-5)
    assert found["loss"] == pytest.approx(
        sum(bucket["loss"] * bucket["tokens"] for bucket in found["by_position"]) / found["tokens"], **ALIKE
    )
    assert other["model"] == "adapted"
    assert Path("loss.png").read_bytes().startswith(b"\x89PNG")
    told = capsys.readouterr().out
    assert "learned cannot read data.seq_len=96: position 95 is outside the table of 32 learned positions" in told
    assert "* beyond the longest sequence in training" in told


def test_a_dashed_line_has_the_colour_of_the_one_curve_that_ends_there(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    lines = []
    monkeypatch.setattr(Axes, "axvline", lambda self, x, color, **rest: lines.append((x, color)))
    buckets = [Bucket(first=1, last=8, entropy=1.0, targets=1), Bucket(first=9, last=99, entropy=2.0, targets=1)]
    common = {"model": "m", "encoding": "e", "text": "t", "seq_len": 99, "metrics": {}, "unit": "u", "targets": 2}
    results = [Result(**common, trained_len=length, buckets=buckets) for length in (16, 32, 16, 128)]
    plot(tmp_path / "loss.png", results)
    assert lines == [(16, "gray"), (32, "C1")]


def test_a_hugging_face_folder_has_the_loss_that_transformers_finds(folder, evaluate, capsys):
    """Tokens are those of its tokenizer, and windows no longer than its training; it has no data of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 24, "initializer_range": 0.5}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=load_trained("rope").tokenizer.vocab_size, **sizes)).eval()
    model.save_pretrained("gpt2")
    shutil.copy("rope/tokenizer.json", "gpt2")
    text = TEXT.read_text()[:100]
    Path("some.txt").write_text(text)
    [found] = evaluate("gpt2", "data=text", "data.path=some.txt")
    tokenizer = load_trained("rope").tokenizer
    stream = torch.tensor([tokenizer.end_of_text, *tokenizer.encode(text), tokenizer.end_of_text])
    total = 0.0
    for start in range(0, 101, 24):
        window = stream[start : start + 25]
        total += torch.nn.functional.cross_entropy(
            model(window[None, :-1]).logits[0], window[1:], reduction="sum"
        ).item()
    assert (found["seq_len"], found["tokens"]) == (24, 101)
    assert found["loss"] == pytest.approx(total / 101, rel=1e-5)
    evaluate("gpt2", code=1)
    assert "gpt2 has no data of its own: type data=text data.path=FILE" in capsys.readouterr().err


def test_documents_start_the_context_anew(folder, evaluate):
    (folder / "short.jsonl").write_text('{"text": "1234567"}\n' * 30)
    [found] = evaluate("rope", "data=text", "data.path=short.jsonl", "data.packing=documents", "--by-position")
    assert found["tokens"] == 30 * 8
    assert max(bucket["to"] for bucket in found["by_position"] if bucket["tokens"]) == 8


@pytest.mark.parametrize("length, trained", [(1, 1), (96, 32), (100, 37), (32, 96), (4096, 256)])
def test_buckets_hold_each_length_once_and_do_not_reach_over_training(length, trained):
    found = edges(length, trained)
    assert [number for bucket in found for number in bucket] == list(range(1, length + 1))
    assert not any(trained in bucket and trained + 1 in bucket for bucket in found)


@pytest.mark.slow
def test_two_processes_find_the_same(folder, evaluate):
    """Those that Lightning starts, for two models one after the other, and those of torchrun."""
    [one, *_] = evaluate("rope/checkpoints/last", "--by-position")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TXTRAIN_CACHE": str(folder / "cache")}
    common = ["-m", "txtrain", "eval", "rope/checkpoints/last", "trainer.accelerator=cpu", "--by-position", "--json"]
    two = ["adapted", "trainer.devices=2", "strategy=fsdp"]
    started = [
        [*common, "fsdp.json", *two],
        ["-m", "torch.distributed.run", "--nproc-per-node=2", *common, "torchrun.json"],
    ]
    for words in started:
        done = forked.run([sys.executable, *words], cwd=folder, env=environment, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("validation data of the run") == 1
    for name in ("fsdp", "torchrun"):
        found = json.loads((folder / f"{name}.json").read_text().splitlines()[0])
        assert found["loss"] == pytest.approx(one["loss"], **ALIKE)
        assert [bucket["tokens"] for bucket in found["by_position"]] == [b["tokens"] for b in one["by_position"]]
        assert (found["accuracy"], found["tokens"]) == (one["accuracy"], one["tokens"])


@pytest.fixture
def sweep(folder, monkeypatch):
    """A sweep of three jobs, of which the last has no checkpoint."""
    monkeypatch.chdir(folder)
    sweep, path = Sweep(Path("runs/gpt/sweeps/first")), folder / "runs"
    for number, (run, encoding) in enumerate([("rope", "rope"), ("learned", "learned"), (None, "alibi")]):
        job = sweep.add([f"encoding={encoding}", "seed=1"], number=number)
        if run:
            shutil.copytree(run, job.directory, symlinks=True)
    sweep.write()
    yield sweep.directory
    shutil.rmtree(path)


def test_a_sweep_is_all_of_its_jobs_by_their_overrides(sweep, evaluate, capsys):
    found = evaluate(str(sweep), "rope", "learned")
    told = capsys.readouterr().out
    assert f"{sweep}: job 2 has no checkpoint and is left out" in told
    assert "\nfirst/0 encoding=rope " in told and "\nfirst/1 encoding=learned " in told
    assert [one["model"] for one in found] == ["first/0 encoding=rope", "first/1 encoding=learned", "rope", "learned"]
    assert [Path(one["run"]).name for one in found] == ["0", "1", "rope", "learned"]
    assert [one["loss"] for one in found[:2]] == [one["loss"] for one in found[2:]]
    assert [label for label, _ in expand_sweeps([str(sweep)])] == ["0 encoding=rope", "1 encoding=learned"]
    (sweep / "0").rename(sweep / "no")
    (sweep / "1").rename(sweep / "none")
    evaluate(str(sweep), code=1)
    assert "has no job with a checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["eval", "MODEL"], ["generate", "MODEL", "a"], ["predict", "MODEL", "a"], ["export", "MODEL", "out"]]
)
def test_a_folder_with_nothing_but_sweeps_lists_them(command, sweep, capsys):
    (sweep.parent / "second").mkdir()
    (sweep.parent / "second/jobs.json").write_text("[]")
    os.utime(sweep.parent / "second/jobs.json", (0, 0))
    for folder in (sweep.parent, sweep.parent.parent):
        assert main([str(folder) if word == "MODEL" else word for word in command]) == 1
        [error] = capsys.readouterr().err.splitlines()
        assert f"{folder} holds no run, only sweeps (" in error
        assert error.index("sweeps/first") < error.index("sweeps/second")
        assert f"{sweep}/0, or type txtrain eval " in error


def test_init_from_a_folder_with_nothing_but_sweeps_lists_them(sweep, capsys):
    assert main(["train", *RUN, "init_from=runs/gpt", "dry_run=true"]) == 1
    [error] = capsys.readouterr().err.splitlines()
    typed = f"init_from={sweep}/0"
    assert error == f"error: init_from=runs/gpt holds no run, only sweeps ({sweep}): name a job, such as {typed}"
    assert main(["train", *RUN, typed, "dry_run=true"]) == 0


@pytest.mark.parametrize(
    "arguments, told",
    [
        ([], "eval needs a model: type txtrain eval runs/NAME/RUN"),
        (["nowhere"], "nowhere does not exist: name a run"),
        (["rope", "norm=post"], "norm=post is not for eval, which takes data, trainer, strategy, compile and no other"),
        (["rope", "data.path=x.txt"], "data.path is no key of the chosen option: type"),
        (["rope", "data=text", "data.path=nothing.txt"], "data.path=nothing.txt does not exist"),
        (["rope", "trainer.precision=bf16-mixed,32"], "trainer.precision has several values"),
        (["learned", "data.seq_len=64"], "position 63 is outside the table of 32 learned positions"),
        (["rope", "--plot", "loss.xyz"], "--plot loss.xyz has no extension of a picture: name a file such as loss.png"),
        (["rope", "--plotted"], "see txtrain eval --help"),
    ],
)
def test_a_mistake_is_one_line(arguments, told, evaluate, capsys):
    evaluate(*arguments, code=1)
    printed = capsys.readouterr().err
    assert told in printed
    assert printed.count("\n") == 1


def test_without_matplotlib_the_plot_names_what_to_install(evaluate, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("txtrain.plots.canvas.find_spec", lambda name: None)
    evaluate("rope", "--plot", "loss.png", code=1)
    assert "pip install 'txtrain[plots]'" in capsys.readouterr().err


def test_changed_data_are_told(folder, evaluate, capsys):
    """The run's own data are still found, under their tokenizer, but it is not the loss that it had."""
    (folder / "changing.txt").write_text(TEXT.read_text()[:4000])
    changing = [word.replace(str(TEXT), "changing.txt") for word in RUN]
    assert main(["train", *changing, *TINY, "run_dir=changing"]) == 0
    (folder / "changing.txt").write_text("~" + TEXT.read_text()[:5000])  # which another tokenizer would know
    [found] = evaluate("changing")
    assert "the data have changed since the run" in capsys.readouterr().out
    assert found["data"] == "validation data" and found["tokens"] == 502
