"""Translation with a memory, as users type it: a bare source is read with the same match as in validation."""

import json
import shutil
from pathlib import Path

import pytest
import sacrebleu
import torch

from tests.task.test_translation import PAIRS, SMALL, end_of, validation_pairs
from txtrain.cli import main
from txtrain.data.memory import FILE
from txtrain.saving import list_checkpoints
from txtrain.trained import load_trained

RECIPE = ["data.memory=true", "data.practice=0.3", "data.batch_tokens=1600", "encoding=sinusoidal", "optimizer.lr=1e-2"]
MODEL = ["embedding.scale=true", "model.dim=64", "model.num_layers=1", "model.num_heads=2", "model.dropout=0.1"]


@pytest.fixture(scope="module", autouse=True)
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    path = folder / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS), encoding="utf-8")
    patch = pytest.MonkeyPatch()
    patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
    yield path
    patch.undo()


def train(*arguments: str) -> None:
    assert main(["train", *SMALL, *arguments]) == 0


@pytest.fixture(scope="module")
def run(pairs) -> Path:
    run = pairs.parent / "run"
    train(
        *RECIPE,
        *MODEL,
        f"data.path={pairs}",
        f"run_dir={run}",
        "trainer.max_steps=160",
        "trainer.val_check_interval=80",
        "save.every=80",
    )
    return run


def test_predict_generate_and_eval_look_up_what_validation_did(run, tmp_path, capsys):
    held = validation_pairs(run)
    expected = json.loads((run / "summary.json").read_text())
    assert 0 < expected["bleu"] < 100
    (tmp_path / "sources.txt").write_text("".join(f"{source}\n" for source, _ in held), encoding="utf-8")
    (tmp_path / "held.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in held), encoding="utf-8")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": source}) + "\n" for source, _ in held))
    said = {}
    for name, *arguments in (
        ("translation", "predict", str(run), str(tmp_path / "sources.txt"), "beams=1"),
        ("text", "generate", str(run), "--file", str(tmp_path / "prompts.jsonl"), "--beams", "1"),
    ):
        capsys.readouterr()
        assert main(arguments) == 0
        said[name] = [json.loads(line)[name] for line in capsys.readouterr().out.splitlines()]
    assert said["translation"] == said["text"]
    references = [[target for _, target in held]]
    assert sacrebleu.corpus_bleu(said["text"], references).score == pytest.approx(expected["bleu"])
    for data in ([], ["data=pairs", f"data.path={tmp_path / 'held.tsv'}"]):
        out = tmp_path / "out.json"
        assert main(["eval", str(run), *data, "trainer.accelerator=cpu", "--json", str(out)]) == 0
        found = json.loads(out.read_text())
        assert found["bleu"] == pytest.approx(expected["bleu"])
        assert found["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-4)


def test_a_run_goes_on_exactly(run, tmp_path):
    parts = tmp_path / "parts"
    shutil.copytree(run, parts, symlinks=True)
    shutil.rmtree(list_checkpoints(parts / "checkpoints")[0])
    assert main(["train", f"resume={parts}"]) == 0
    ends = end_of(run), end_of(parts)
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert (parts / FILE).read_text() == (run / FILE).read_text()


def test_sets_of_a_mixture_have_no_memory(pairs, capsys):
    sets = [f"data.sets.{name}" for name in "ab"]
    given = ["data=mixture", *(f"{name}=pairs" for name in sets), *(f"{name}.path={pairs}" for name in sets)]
    typed = [option for option in SMALL if option != "data=pairs"]
    assert main(["train", *typed, *MODEL, *given, "data.memory=true", f"run_dir={pairs.parent / 'mixed'}"]) == 1
    assert "data=mixture has no memory that all sets share" in capsys.readouterr().err


def test_a_run_without_its_memory_is_refused(run, capsys):
    text = (run / FILE).read_text()
    (run / FILE).unlink()
    assert main(["predict", str(run), str(run / "train.log")]) == 1
    assert "memory.jsonl is not there: restore it" in capsys.readouterr().err
    (run / FILE).write_text(text)
    assert load_trained(run).memory is not None
