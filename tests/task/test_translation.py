"""Translation: BLEU and chrF of parts are those of the whole, padding changes nothing, and runs as users type them."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import pytest
import sacrebleu
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from tests.pairwise import pairwise
from tests.task.examples import ZERO
from txtrain.cli import main
from txtrain.config import config_directory, options
from txtrain.data.special import DecoderTokens
from txtrain.errors import UserError
from txtrain.generate.beams import search
from txtrain.generate.reader import EncoderDecoderReader
from txtrain.generate.sampling import Sampling
from txtrain.generate.translate import InStep, Translator
from txtrain.model.head import Loss
from txtrain.saving import Reader, list_checkpoints
from txtrain.task.overlap import Overlap
from txtrain.task.translation import Translation
from txtrain.train import model_function
from txtrain.trained import load_trained

ROOT = Path(__file__).parent.parent.parent
COLOURS = {"red": "rot", "blue": "blau", "green": "grün", "black": "schwarz", "white": "weiß", "grey": "grau"}
THINGS = {"house": "haus", "ship": "schiff", "horse": "pferd", "bread": "brot", "light": "licht", "sign": "schild"}
PAIRS = [
    (f"{a} {x} and {b} {y}", f"{COLOURS[a]}es {THINGS[x]} und {COLOURS[b]}es {THINGS[y]}")
    for a in COLOURS
    for b in COLOURS
    for x in THINGS
    for y in list(THINGS)[:3]
]
VOCAB = 23


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("TXTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.tsv"
    path.write_text("".join(f"{source}\t{target}\n" for source, target in PAIRS), encoding="utf-8")
    return path


def compose(*overrides: str) -> DictConfig:
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        return hydra.compose("train", overrides=["task=translation", *overrides])


def new_model(*overrides: str, vocab_size: int = VOCAB, **sizes: int) -> torch.nn.Module:
    config = compose("model.dim=16", "model.num_heads=2", "model.num_layers=2", *overrides)
    groups = ("task", "model", *Translation.model_groups)
    parts = {group: instantiate(config[group], _convert_="all") for group in groups}
    torch.manual_seed(0)
    model = model_function(parts)(vocab_size=vocab_size, max_len=32, **sizes)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return model.eval()


def batch(*lengths: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Random pairs of these lengths, padded."""
    generator = torch.Generator().manual_seed(1)
    longest = [max(sides) for sides in zip(*lengths, strict=True)]
    draw = partial(torch.randint, 1, VOCAB, generator=generator)
    source, target = (draw((len(lengths), length)) for length in longest)
    columns = [torch.arange(length) for length in longest]
    counts = torch.tensor(lengths)
    targets = torch.where(columns[1] < counts[:, 1:], target, -100)
    tokens = torch.cat([torch.zeros(len(lengths), 1, dtype=torch.int64), target[:, :-1]], dim=1)
    return {"source": source, "source_padding": columns[0] < counts[:, :1], "tokens": tokens, "targets": targets}


# BLEU and chrF


def sentences(count: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    words = ["der", "die", "das", "ein", "haus,", "ist", "nicht", "groß!", "wenn", "1.5", "%", "im"]
    return [" ".join(words[i] for i in torch.randint(len(words), (n % 9,), generator=generator)) for n in range(count)]


@pytest.mark.parametrize("tokenize", ["13a", "intl", "char"])
def test_counts_of_parts_give_what_sacrebleu_says_of_the_whole(tokenize):
    written, references = sentences(60, 0), sentences(60, 1)
    written[::3] = references[::3]
    overlap = Overlap(tokenize=tokenize)
    sums = overlap.counts([], [])
    for part in (slice(0, 1), slice(1, 1), slice(1, 40), slice(40, 60)):
        for name, count in overlap.counts(written[part], references[part]).items():
            sums[name] = sums[name] + count
    scores = overlap.scores(sums)
    assert scores["bleu"] == pytest.approx(
        sacrebleu.corpus_bleu(written, [references], tokenize=tokenize).score, abs=1e-12
    )
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, [references]).score, abs=1e-12)
    assert 20 < scores["bleu"] < 80


def test_an_unknown_tokenizer_and_no_sacrebleu(monkeypatch):
    with pytest.raises(UserError, match=r"task.bleu_tokenize=xx is unknown to sacrebleu: set it to one of .*13a"):
        Overlap(tokenize="xx")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"pip install 'txtrain\[tasks\]'"):
        Overlap()


# The model and its loss


AXES = {axis: options(config_directory(), axis) for axis in ("encoding", "norm", "attention", "ffn")}
AXES["encoding"].remove("xpos")  # which is for decoders only
ROWS = pairwise({axis: [f"{axis}={name}" for name in names] for axis, names in AXES.items()})


@pytest.mark.parametrize("row", [list(row.values()) for row in ROWS], ids=",".join)
def test_no_real_token_depends_on_padding(row):
    """Of source or target: alone and unpadded each pair gives the same logits, whatever stands in the padding."""
    model = new_model(*row, *(["attention.window=3"] if "attention=sliding" in row else []))
    lengths = [(9, 3), (2, 8), (5, 5)]
    padded = batch(*lengths)
    logits = model(padded["source"], padded["tokens"], padded["source_padding"])
    filled = padded["source"].where(padded["source_padding"], 0), padded["tokens"].where(padded["targets"] >= 0, 5)
    again = model(*filled, padded["source_padding"])
    for row_number, (source, target) in enumerate(lengths):
        one = slice(row_number, row_number + 1)
        alone = model(padded["source"][one, :source], padded["tokens"][one, :target])
        torch.testing.assert_close(logits[one, :target], alone, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(again[one, :target], alone, atol=2e-5, rtol=1e-4)


def test_the_loss_against_a_formula_in_float64():
    """Smoothed targets: 1 - s on the right token and s / V on each."""
    model, smoothing, given = new_model().double(), 0.1, batch((4, 6), (7, 2))
    task = Translation.__new__(Translation)
    torch.nn.Module.__init__(task)
    task.model, task.loss = model, Loss(label_smoothing=smoothing)
    objective, entropy = task.losses(given)
    expected = plain = 0.0
    for row in range(2):
        source = given["source"][row][given["source_padding"][row]][None]
        valid = int((given["targets"][row] >= 0).sum())
        scores = model(source, given["tokens"][row, :valid][None])[0].log_softmax(-1)
        right = scores[torch.arange(valid), given["targets"][row, :valid]]
        plain -= right.sum().item()
        expected -= ((1 - smoothing) * right + smoothing * scores.mean(-1)).sum().item()
    assert entropy.item() == pytest.approx(plain, rel=1e-5)
    assert objective.item() == pytest.approx(expected, rel=1e-5)


def test_separate_vocabularies_have_their_own_vectors():
    model = new_model("embedding.shared=false", target_vocab_size=9)
    assert model.encoder.embedding.tokens.weight.shape == (VOCAB, 16)
    assert model.decoder.embedding.tokens.weight is model.decoder.head.linear.weight
    assert model(torch.ones(1, 3, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)).shape == (1, 4, 9)
    with pytest.raises(ValueError, match=r"set embedding.shared=false"):
        new_model(target_vocab_size=9)


# Translating


def translator(model: Any, **settings: Any) -> Translator:
    tokens = DecoderTokens(start=0, ends=frozenset({3, 4, 5}))
    return Translator(model, decode=lambda ids: " ".join(map(str, ids)), tokens=tokens, max_len=32, **settings)


SOURCES = [[5, 6, 7, 8], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9], [11, 12]]


def test_one_beam_is_greedy_and_a_batch_is_what_each_is_alone():
    model = new_model()
    greedy = translator(model).translate(SOURCES)
    assert len({len(text) for text in greedy}) > 1
    beam = translator(model, beams=3, length_penalty=0.6)
    assert beam.translate(SOURCES) == [beam.translate([source])[0] for source in SOURCES]
    assert greedy == [translator(model).translate([source])[0] for source in SOURCES]
    texts = [translator(model).new_text(source) for source in SOURCES]
    beams = [translator(model)._new_beams(text) for text in texts]
    found = search(EncoderDecoderReader(model, room=32, start=[0]), texts, beams, Sampling())
    ended = [tokens[:-1] if tokens[-1] in (3, 4, 5) else tokens for tokens in found]
    assert [" ".join(map(str, tokens)) for tokens in ended] == greedy


def test_greedy_takes_what_the_model_without_a_cache_scores_highest():
    model = new_model()
    for source, text in zip(SOURCES, translator(model).translate(SOURCES), strict=True):
        written = [0]
        while len(written) < 32:
            logits = model(torch.tensor([source]), torch.tensor([written]))
            token = int(logits[0, -1].argmax())
            if token in (3, 4, 5):
                break
            written.append(token)
        assert text == " ".join(map(str, written[1:]))


def test_processes_read_in_step_until_the_last_text_has_ended():
    """One process has the others' answers: two of them have ended before the third."""
    calls = []

    class Counting:
        def start(self, prompts):
            return torch.full((len(prompts), VOCAB), torch.nan)

        def read(self, tokens):
            calls.append(len(tokens))
            return torch.full((len(tokens), VOCAB), torch.inf)

        def select(self, rows):
            pass

    asked = iter([True, True, True, True, False])
    reader = InStep(Counting(), lambda here: next(asked))
    assert reader.start([[1], [2], [3]]).isfinite().all()
    reader.select(torch.tensor([0, 2]))
    assert reader.read(torch.tensor([1, 2])).isfinite().all()
    reader.finish()
    assert calls == [2, 2, 2, 2]


# Runs

MODEL = ["model.dim=32", "model.num_layers=1", "model.num_heads=2"]
SMALL = [
    "task=translation",
    "data=pairs",
    "tokenizer=char",
    "logger=none",
    "trainer.accelerator=cpu",
    "data.batch_tokens=400",
    "save.keep=9",
    "trainer.devices=1",
]


def train(run_dir: Path, pairs: Path, *overrides: str) -> dict[str, Any]:
    model = [] if any(override.startswith("init_from") for override in overrides) else MODEL
    assert main(["train", *SMALL, *model, f"data.path={pairs}", f"run_dir={run_dir}", *overrides]) == 0
    return json.loads((run_dir / "summary.json").read_text())


def end_of(run_dir: Path) -> dict[str, torch.Tensor]:
    reader = Reader(list_checkpoints(run_dir / "checkpoints")[0])
    return {name: reader[name] for name in reader}


@pytest.fixture(scope="module")
def learned(tmp_path_factory, pairs) -> Path:
    """Learns what the words mean, in a few epochs."""
    run = tmp_path_factory.mktemp("learned") / "run"
    recipe = ["optimizer.lr=1e-2", "encoding=learned", "trainer.max_steps=220", "trainer.val_check_interval=110"]
    recipe += ["samples.prompt='red ship and grey bread'"]
    summary = train(run, pairs, *recipe, "data.batch_tokens=1600", "model.dim=64", "task.beams=2")
    assert summary["bleu"] > 60, summary
    return run


def validation_pairs(run: Path) -> list[list[str]]:
    name = json.loads((run / "data.json").read_text())["fingerprint"]
    file = Path(os.environ["TXTRAIN_CACHE"]) / name / "validation.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_bleu_in_training_is_sacrebleus_of_what_generate_writes(learned, tmp_path, capsys):
    """Whole set, another code path: prompts from a file through `txtrain generate`, with the run's tokenizer."""
    held = validation_pairs(learned)
    assert len(held) > 20
    (tmp_path / "sources.jsonl").write_text("".join(json.dumps({"prompt": source}) + "\n" for source, _ in held))
    checkpoint = list_checkpoints(learned / "checkpoints")[0]
    capsys.readouterr()
    arguments = ["--file", str(tmp_path / "sources.jsonl"), "--beams", "2", "--batch-size", "7"]
    assert main(["generate", str(checkpoint), *arguments]) == 0
    written = [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()]
    rows = [json.loads(line) for line in (learned / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "validation/bleu" in row][-1]
    references = [[target for _, target in held]]
    assert last["validation/bleu"] == pytest.approx(sacrebleu.corpus_bleu(written, references).score)
    assert last["validation/chrf"] == pytest.approx(sacrebleu.corpus_chrf(written, references).score)


def test_predict_and_eval(learned, tmp_path, capsys):
    """Of lines and of objects, and of other pairs as a whole: what validation said of the same pairs."""
    held = validation_pairs(learned)
    (tmp_path / "held.tsv").write_text("".join(f"{source}\t{target}\n" for source, target in held), encoding="utf-8")
    (tmp_path / "sources.txt").write_text("".join(f"{source}\n" for source, _ in held), encoding="utf-8")
    rows = [{"source": source, "id": number} for number, (source, _) in enumerate(held)]
    (tmp_path / "sources.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = []
    for name in ("sources.txt", "sources.jsonl"):
        capsys.readouterr()
        assert main(["predict", str(learned), str(tmp_path / name), "beams=2"]) == 0
        told.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert [row["translation"] for row in told[0]] == [row["translation"] for row in told[1]]
    assert [row["id"] for row in told[1]] == list(range(len(held)))
    bleu = sacrebleu.corpus_bleu([row["translation"] for row in told[0]], [[target for _, target in held]]).score
    for data in ([], ["data=pairs", f"data.path={tmp_path / 'held.tsv'}"]):
        out = tmp_path / "out.json"
        assert main(["eval", str(learned), *data, "trainer.accelerator=cpu", "--json", str(out)]) == 0
        assert json.loads(out.read_text())["bleu"] == pytest.approx(bleu)
    assert main(["predict", str(learned), str(tmp_path / "sources.txt"), "beams=0"]) == 1
    assert "beams is 0" in capsys.readouterr().err


def test_a_sample_is_a_translation(learned, tmp_path, pairs):
    [early, late] = [line for line in (learned / "train.log").read_text().splitlines() if "sample at step" in line]
    assert re.search(r"sample at step 220  red ship and grey bread → \w+es \w+ und \w+es \w+$", late)
    assert "sample at step 110" in early


def test_a_trained_translator_knows_how_texts_begin_and_end(learned):
    trained = load_trained(learned)
    assert trained.begin == (trained.tokenizer.end_of_text,)
    assert trained.end_tokens == {trained.tokenizer.end_of_text}


PARTS = ["model.dropout=0.1", "trainer.max_steps=10", "save.every=5", "trainer.val_check_interval=5"]
VARIANTS = {
    "plain": [],
    "lora": ["lora.rank=2"],
    "separate": ["data.vocabulary=separate", "embedding.shared=false", "loss.label_smoothing=0.1"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_goes_on_exactly(variant, tmp_path, pairs):
    run, parts = tmp_path / "run", tmp_path / "parts"
    train(run, pairs, *PARTS, *VARIANTS[variant], "trainer.limit_val_batches=1")
    shutil.copytree(run, parts, symlinks=True)
    shutil.rmtree(list_checkpoints(parts / "checkpoints")[0])
    micro = ["task=translation", "data.micro_batch_tokens=200"] if variant == "lora" else []
    assert main(["train", f"resume={parts}", *micro]) == 0
    ends = end_of(run), end_of(parts)
    assert ends[0].keys() == ends[1].keys()
    if not micro:
        assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert load_trained(run).written.vocab_size


def test_micro_batches_and_checkpointing_change_no_number(tmp_path, pairs):
    still = ["trainer.max_steps=6", "trainer.val_check_interval=6", "optimizer=sgd", "optimizer.lr=0.1"]
    whole = train(tmp_path / "whole", pairs, *still)
    for name, change in {"micro": "data.micro_batch_tokens=90", "full": "checkpointing=full"}.items():
        other = train(tmp_path / name, pairs, *still, change)
        assert other["validation_loss"] == pytest.approx(whole["validation_loss"], rel=1e-5)
        assert other["bleu"] == whole["bleu"] and other["tokens"] == whole["tokens"]


def test_a_trained_run_is_where_another_starts(learned, tmp_path, pairs):
    """Adapters on a trained translator: what it knows it still knows."""
    begins = [f"init_from={learned}", "lora.rank=2", "trainer.max_steps=2", "trainer.val_check_interval=2"]
    summary = train(tmp_path / "run", pairs, *begins, "optimizer.lr=1e-5", "task.beams=2")
    first = json.loads((learned / "summary.json").read_text())
    assert summary["bleu"] == pytest.approx(first["bleu"], abs=0.5)


@pytest.mark.parametrize(
    "strategy", ["ddp", *(pytest.param(name, marks=pytest.mark.heavy) for name in ("fsdp", *ZERO))]
)
def test_two_devices_end_where_one_does(strategy, tmp_path, pairs):
    """The loss, BLEU and chrF; ranks whose texts end early read on with the others, since the model may be sharded."""
    still = ["trainer.max_steps=6", "trainer.val_check_interval=3", "optimizer=sgd", "optimizer.lr=0.3", "task.beams=2"]
    one = train(tmp_path / "one", pairs, *still)
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, *MODEL, f"data.path={pairs}"]
    command += [f"run_dir={tmp_path / 'two'}", *still, "trainer.devices=2", *f"strategy={strategy}".split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    two = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-5)
    assert two["tokens"] == one["tokens"]
    assert [two["bleu"], two["chrf"]] == pytest.approx([one["bleu"], one["chrf"]], rel=1e-9)


def test_mistakes_are_one_line(tmp_path, pairs, capsys):
    own = ["data=pairs", f"data.path={pairs}"]
    for overrides, message in {
        (*own, "task.beams=0"): "task.beams is 0: give 1 or more",
        (*own, "data.vocabulary=separate"): "set embedding.shared=false",
        ("data=stdlib",): "the task reads translations",
    }.items():
        arguments = ["task=translation", *MODEL, "tokenizer=char", "logger=none", f"run_dir={tmp_path / 'run'}"]
        assert main(["train", *arguments, *overrides]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
