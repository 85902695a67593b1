"""Runs on mixtures: metrics of each set, on any devices, exact resume, and what is told of samples."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_resume import finish
from txtrain.cli import main

TEXT = (Path(__file__).parent / "golden" / "text.txt").read_text()
SETS = ["data=mixture", "data.sets.code=text", "data.sets.code.path=code.txt", "data.sets.prose=text"]
SETS += ["data.sets.prose.path=prose.jsonl", "data.sets.prose.validation_fraction=0.3", "data.sets.other=text"]
SETS += ["data.sets.other.path=other.txt", "data.weights={code:0.7,prose:0.3,other:0}", "data.seq_len=32"]
TINY = ["data.batch_size=7", "tokenizer=char", "model.dim=32", "model.num_layers=1", "logger=none"]
TINY += [
    "trainer.accelerator=cpu",
    "samples.length=0",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=4",
    "schedule=constant",
]
STEPS = 8
METRICS = ("loss", "perplexity", "bits_per_byte")


def write(folder: Path) -> None:
    (folder / "code.txt").write_text(TEXT[:6000])
    lines = [json.dumps({"text": line.upper()}) for line in TEXT[6000:9000].split("\n") if line]
    (folder / "prose.jsonl").write_text("\n".join(lines))
    (folder / "other.txt").write_text(TEXT[9000:11000])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a run of 8 steps, and one that stopped after 4 and went on."""
    folder = tmp_path_factory.mktemp("mixture")
    write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["train", *SETS, *TINY, f"trainer.max_steps={STEPS}", "run_dir=whole"]) == 0
        assert main(["train", *SETS, *TINY, "trainer.max_steps=4", "run_dir=parts"]) == 0
        assert main(["train", "resume=parts", *SETS, *TINY, f"trainer.max_steps={STEPS}"]) == 0
        yield folder


def rows(run: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("train/tokens_per_second", "train/memory_bytes", "seconds")
    return [{name: value for name, value in row.items() if name not in timed} for row in found]


def evaluated(*arguments: str) -> dict[str, Any]:
    assert main(["eval", *arguments, "trainer.accelerator=cpu", "--json", "found.json"]) == 0
    return json.loads(Path("found.json").read_text())


def test_a_run_that_stopped_goes_on_bitwise(folder: Path) -> None:
    """In the middle of an epoch and of a set: the same losses, to the last digit, of training and of each set."""
    assert rows(folder / "parts") == rows(folder / "whole")
    assert [row["step"] for row in rows(folder / "whole") if "train/loss" in row] == list(range(1, STEPS + 1))


def test_each_set_has_the_metrics_that_it_has_alone(folder: Path) -> None:
    """And the whole those of all samples."""
    last = rows(folder / "whole")[-1]
    files = {"code": ["code.txt", "data.validation_fraction=0.1"], "other": ["other.txt"]}
    files["prose"] = ["prose.jsonl", "data.validation_fraction=0.3"]
    entropy = tokens = 0.0
    for name, (path, *split) in files.items():
        alone = evaluated("whole/checkpoints/last", "data=text", f"data.path={path}", *split)
        for metric in METRICS:
            assert last[f"validation/{name}/{metric}"] == pytest.approx(alone[metric], rel=1e-7)
        entropy, tokens = entropy + alone["loss"] * alone["tokens"], tokens + alone["tokens"]
    assert last["validation/loss"] == pytest.approx(entropy / tokens, rel=1e-7)
    summary = json.loads((folder / "whole" / "summary.json").read_text())
    assert summary["prose/loss"] == last["validation/prose/loss"]
    assert summary["validation_loss"] == last["validation/loss"]
    own = evaluated("whole/checkpoints/last")
    names = [f"{name}/{metric}" for name in ("code", "prose", "other") for metric in METRICS]
    assert {name: own[name] for name in names} == pytest.approx({name: last[f"validation/{name}"] for name in names})


def test_another_mixture_is_evaluated_set_by_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = [
        "data=mixture",
        "data.sets.a=text",
        "data.sets.a.path=other.txt",
        "data.sets.b=text",
        "data.sets.b.path=code.txt",
    ]
    found = evaluated("whole", *sets)
    table = capsys.readouterr().out
    for name, path in (("a", "other.txt"), ("b", "code.txt")):
        alone = evaluated("whole", "data=text", f"data.path={path}")
        assert found[f"{name}/loss"] == pytest.approx(alone["loss"], rel=1e-7)
        assert re.search(rf"^  {name} +{alone['loss']:.4f} ", table, re.MULTILINE)


def test_what_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = (folder / "whole" / "train.log").read_text()
    told = re.search(r"data +3 sets, (\d+) samples to train on; an epoch is as many, (\d+) steps", log)
    assert told is not None
    assert -(-int(told[1]) // 7) == int(told[2])
    assert re.search(r"set code +0\.7 of the samples, [\d.]+ passes; [\d.]+k tokens to train on", log)
    assert re.search(r"set other +weight 0: 63 samples, for validation only", log)
    assert re.search(r"validation of prose at step 8  loss \d", log)
    capsys.readouterr()
    assert main(["audit", "whole", "1..3", "--json"]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    samples = [sample for step in steps for sample in step["samples"]]
    assert {sample["set"] for sample in samples} == {"code", "prose"}
    assert abs(sum(sample["set"] == "code" for sample in samples) - 0.7 * 21) < 1
    assert all((sample["text"].isupper()) == (sample["set"] == "prose") for sample in samples)
    assert main(["audit", "whole", "1"]) == 0
    assert re.search(r"^  sample code:\d+  from token \d+", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.heavy
def test_two_devices_see_the_same(folder: Path) -> None:
    """The losses of training and of each set, and a sample counts once."""
    finish(folder, *SETS, *TINY, f"trainer.max_steps={STEPS}", "run_dir=two", "trainer.devices=2", "strategy=ddp")
    for mine, one in zip(rows(folder / "two"), rows(folder / "whole"), strict=True):
        assert mine == pytest.approx(one, rel=1e-5)
