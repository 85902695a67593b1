"""Masked language models and classifiers of text: evaluation, resume, new heads, adapters, predictions."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from tests.task.examples import TEXT, TINY, ZERO, read_lines, validations, write_labelled, write_tagged
from txtrain.cli import main
from txtrain.trained import load_trained

ROOT = Path(__file__).parents[2]
STEPS = [
    "schedule=constant",
    "optimizer.lr=5e-3",
    "trainer.max_steps=8",
    "trainer.val_check_interval=4",
    "save.every=4",
]
MASKED = ["data=text", f"data.path={TEXT}", "data.seq_len=48", "data.batch_size=6"]
LABELLED = ["data=labelled", "data.path=rows.jsonl", "data.seq_len=40", "data.validation_fraction=0.3"]
TAGGED = ["data=tagged", "data.path=tags.jsonl", "data.seq_len=24", "data.validation_fraction=0.3"]
TASKS = {
    "masked_lm": ["task=masked_lm", *MASKED],
    "masked_pairs": ["task=masked_pairs", *MASKED],
    "sequence_classification": ["task=sequence_classification", *LABELLED],
    "token_classification": ["task=token_classification", *TAGGED],
}
ALIKE = {"rel": 1e-9, "abs": 1e-12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of each task."""
    folder = tmp_path_factory.mktemp("tasks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        write_labelled(Path("rows.jsonl"))
        write_labelled(Path("pairs.csv.jsonl"), pairs=True)
        write_tagged(Path("tags.jsonl"))
        for task, overrides in TASKS.items():
            assert main(["train", *overrides, *TINY, *STEPS, f"run_dir={task}"]) == 0
    return folder


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)


def best(run):
    return min(validations(run), key=lambda row: row["loss"])


def test_samples_show_masked_words_and_tags_in_their_text():
    def told(task):
        [line] = [line for line in Path(task, "train.log").read_text().splitlines() if "sample at step 8  " in line]
        return line.partition("sample at step 8  ")[2].rpartition("|")[::2]

    for task in ("masked_lm", "masked_pairs"):
        right, said = told(task)
        between = [[part.strip() for part in re.split(r"\[[^]]*\]", text)] for text in (right, said)]
        assert between[0] == between[1] and len(between[0]) > 1, "but for what is in brackets the texts are the same"
        assert right != said
    right, said = told("token_classification")
    for word in right.removesuffix(" …").split():
        name, _, tag = word.partition("/")
        assert bool(tag) == name[0].isupper()
    assert [word.partition("/")[0] for word in said.split()] == [word.partition("/")[0] for word in right.split()]


@pytest.mark.parametrize("task", TASKS)
def test_evaluation_finds_what_training_found(task):
    assert main(["eval", task, "--json", "found.json", "trainer.accelerator=cpu"]) == 0
    found = read_lines("found.json")[0]
    expected = best(task)
    assert {name: found[name] for name in expected} == pytest.approx(expected, **ALIKE)


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_is_the_same(task):
    shorter = ["trainer.max_steps=4" if step.startswith("trainer.max_steps") else step for step in STEPS]
    assert main(["train", *TASKS[task], *TINY, *shorter, f"run_dir={task}_resumed"]) == 0
    assert main(["train", f"resume={task}_resumed", "trainer.max_steps=8"]) == 0
    assert validations(f"{task}_resumed") == validations(task)
    whole, parts = (_weights(run) for run in (task, f"{task}_resumed"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def _weights(run):
    return dict(load_trained(Path(run, "checkpoints", "last").resolve()).model.state_dict())


@pytest.mark.parametrize("task", ["masked_lm", "token_classification"])
def test_checkpointing_changes_no_number(task):
    overrides = [*TASKS[task], *TINY, *STEPS, "checkpointing=full", f"run_dir={task}_full"]
    assert main(["train", *overrides]) == 0
    assert validations(f"{task}_full") == validations(task)


@pytest.mark.parametrize(("task", "other"), [("sequence_classification", LABELLED), ("token_classification", TAGGED)])
def test_a_head_of_labels_is_new_and_trains_beside_adapters(task, other, capsys):
    """All but the head is that of the masked language model; with adapters only they and the head change."""
    run = f"{task}_adapted"
    start = ["init_from=masked_lm", "lora.rank=2", "logger=none", "trainer.accelerator=cpu"]
    assert main(["train", f"task={task}", *other, *start, *STEPS, f"run_dir={run}"]) == 0
    trained, begun = load_trained(run), load_trained("masked_lm")
    before, after = begun.model.state_dict(), trained.model.state_dict()
    assert after["head.linear.weight"].shape == (len(trained.labels), 32)
    same = {name for name, value in after.items() if name in before and torch.equal(value, before[name])}
    assert {"embedding.tokens.weight", "stack.norm.final.weight"} <= same
    changed = {name for name in after if not name.startswith("head.")} - same
    assert changed
    assert all(name.endswith("_proj.weight") for name in changed)
    assert main(["eval", run, "--json", "found.json", "trainer.accelerator=cpu"]) == 0
    expected = best(run)  # before the adapters were merged into the weights
    assert {name: read_lines("found.json")[0][name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_the_same_labels_keep_their_head(capsys):
    """A run on from a classifier of the same labels starts with its head, one of others with a new one."""
    start = ["logger=none", "trainer.accelerator=cpu", *LABELLED, "init_from=sequence_classification"]
    still = ["optimizer.lr=1e-12", "optimizer.weight_decay=0", "trainer.max_steps=1"]
    assert main(["train", "task=sequence_classification", *start, *still, "run_dir=kept"]) == 0
    before, after = _weights("sequence_classification"), _weights("kept")
    assert torch.allclose(before["head.linear.weight"], after["head.linear.weight"], atol=1e-9)
    rows = [row | {"label": row["label"].upper()} for row in read_lines("rows.jsonl")]
    Path("others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["train", "task=sequence_classification", *start, *still, "data.path=others.jsonl", "run_dir=new"]) == 0
    after = _weights("new")
    assert not torch.allclose(before["head.linear.weight"], after["head.linear.weight"], atol=1e-2)
    assert torch.allclose(before["embedding.tokens.weight"], after["embedding.tokens.weight"], atol=1e-9)
    assert list(load_trained("new").labels) == ["BAD", "GOOD", "NEUTRAL"]


def test_predictions_are_those_of_the_evaluation():
    """Labels told of the validation texts have the scores that the evaluation found, by scikit-learn."""
    shutil.copy("rows.jsonl", "asked.jsonl")  # under its own name a run's validation data are evaluated
    assert main(["predict", "sequence_classification", "asked.jsonl", "--output", "told.jsonl", "--device=cpu"]) == 0
    assert main(
        ["eval", "sequence_classification", "data=labelled", "data.path=asked.jsonl", "--json", "found.json"]
        + ["trainer.accelerator=cpu"]
    ) == 0  # fmt: skip
    told, found = read_lines("told.jsonl"), read_lines("found.json")[0]
    true, guessed = [row["label"] for row in read_lines("rows.jsonl")], [row["label"] for row in told]
    guessed = [max(row["probabilities"], key=row["probabilities"].get) for row in told]
    assert found["samples"] == len(true)
    assert found["accuracy"] == pytest.approx(accuracy_score(true, guessed))
    assert found["f1"] == pytest.approx(f1_score(true, guessed, average="macro"))
    assert found["matthews"] == pytest.approx(matthews_corrcoef(true, guessed))
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in told)


def test_tags_told_are_those_of_the_evaluation():
    shutil.copy("tags.jsonl", "asked_tags.jsonl")  # under its own name a run's validation data are evaluated
    assert main(["predict", "token_classification", "asked_tags.jsonl", "--output", "told.jsonl", "--device=cpu"]) == 0
    data = ["data=tagged", "data.path=asked_tags.jsonl"]
    assert main(["eval", "token_classification", *data, "--json", "found.json", "trainer.accelerator=cpu"]) == 0
    true, told, found = read_lines("tags.jsonl"), read_lines("told.jsonl"), read_lines("found.json")[0]
    assert [row["tokens"] for row in told] == [row["tokens"] for row in true]
    flat = [[tag for row in rows for tag in row["tags"]] for rows in (true, told)]
    assert found["words"] == len(flat[0])
    assert found["accuracy"] == pytest.approx(accuracy_score(*flat))
    # An entity that a cut goes through is two in the evaluation, so that whole sentences have about its score.
    assert found["f1"] == pytest.approx(entity_f1([r["tags"] for r in true], [r["tags"] for r in told]), abs=0.05)
    for row in told:
        for entity in row["entities"]:
            assert row["tags"][entity["first"]] != "O"
            assert entity["text"] == " ".join(row["tokens"][entity["first"] : entity["last"] + 1])


def test_data_in_which_nothing_is_scored_are_told(capsys):
    Path("short.txt").write_text("a")
    words = ["eval", "masked_lm", "data=text", "data.path=short.txt", "trainer.accelerator=cpu"]
    assert main(words) == 1
    assert "all of the data hold nothing that could be scored: give more" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["masked_lm", "masked_pairs"])
def test_a_mask_is_filled_by_each_model_of_masks(task):
    Path("mask.txt").write_text("First <mask>: we\n")
    assert main(["predict", task, "mask.txt", "top=2", "--output", "told.jsonl", "--device=cpu"]) == 0
    [told] = read_lines("told.jsonl")
    assert len(told["masks"]) == 1 and len(told["masks"][0]) == 2


def test_masks_are_filled_in():
    """The probabilities are those of the model, which sees the text as in training."""
    Path("masks.txt").write_text("First <mask>: we\nWe <mask> any <mask>\n")
    assert main(["predict", "masked_lm", "masks.txt", "top=3", "--output", "told.jsonl", "--device=cpu"]) == 0
    told, trained = read_lines("told.jsonl"), load_trained("masked_lm")
    assert [len(row["masks"]) for row in told] == [1, 2]
    tokenizer = trained.tokenizer
    tokens = [*tokenizer.encode("First"), tokenizer.special("mask"), *tokenizer.encode(": we")]
    row = torch.tensor([[tokenizer.special("class"), *tokens, tokenizer.special("separator")]])
    logits = trained.model(row)[0, 1 + tokens.index(tokenizer.special("mask"))]
    logits[sorted(tokenizer.special_ids)] = -math.inf
    chances, ids = logits.softmax(0).topk(3)
    assert [mask["token"] for mask in told[0]["masks"][0]] == [tokenizer.decode([token]) for token in ids.tolist()]
    assert [mask["probability"] for mask in told[0]["masks"][0]] == pytest.approx(chances.tolist(), abs=1e-6)
    assert told[0]["filled"] == "First" + told[0]["masks"][0][0]["token"] + ": we"


def test_a_stream_is_answered_line_by_line():
    """Each answer comes before the next line is sent; a line that cannot be read is told, and the next one answered."""
    command = [sys.executable, "-m", "txtrain", "predict", "sequence_classification", "-", "--device=cpu"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        answers = []
        for line in ("a lovely day", "{broken", '{"text": "so it is", "id": 7}'):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            answers.append(json.loads(process.stdout.readline()))
        process.stdin.close()
        assert process.wait(60) == 0
    assert answers[0]["text"] == "a lovely day"
    assert "line 2 is not JSON" in answers[1]["error"]
    assert answers[2]["id"] == 7
    assert set(answers[2]["probabilities"]) == {"bad", "good", "neutral"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["masked_lm", "bare.txt"], "bare.txt line 1: the text has no <mask>"),
        (["sequence_classification", "nowhere.txt"], "nowhere.txt does not exist"),
        (["sequence_classification", "bare.txt", "beams=4"], "beams is no key"),
        (["sequence_classification", "bare.txt", "top=many"], "top must be an int or null"),
        (
            ["sequence_classification", "fields.jsonl"],
            "fields.jsonl line 1: it has words, and the text is to be in text",
        ),
        (["sequence_classification"], "predict needs a model and inputs"),
    ],
)
def test_mistakes_of_predict(arguments, message, capsys):
    Path("bare.txt").write_text("no place to fill in\n")
    Path("fields.jsonl").write_text('{"words": "a"}\n')
    assert main(["predict", *arguments]) == 1
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_pairs_are_told_apart_by_types_and_separators():
    """A pair is read with both texts: predictions change with the second one."""
    run = ["task=sequence_classification", "data=labelled", "data.path=pairs.csv.jsonl", "data.pair=second"]
    assert main(["train", *run, *TINY, *STEPS, "embedding.token_types=2", "run_dir=paired"]) == 0
    Path("two.jsonl").write_text('{"text": "a b", "second": "lovely"}\n{"text": "a b", "second": "awful"}\n')
    assert main(["predict", "paired", "two.jsonl", "pair=second", "--output", "told.jsonl", "--device=cpu"]) == 0
    one, other = read_lines("told.jsonl")
    assert one["probabilities"] != other["probabilities"]


@pytest.mark.parametrize("task", ["masked_pairs", "sequence_classification", "token_classification"])
def test_evaluation_on_two_devices_finds_the_same(task):
    command = [sys.executable, "-m", "txtrain", "eval", task, "trainer.accelerator=cpu"]
    two = ["trainer.devices=2", "strategy=ddp", "--json", f"{task}.json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *two], check=True, env=environment, timeout=300, capture_output=True)
    found, expected = read_lines(f"{task}.json")[0], best(task)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


@pytest.mark.heavy
@pytest.mark.parametrize("strategy", ["ddp", *ZERO])
@pytest.mark.parametrize("task", TASKS)
def test_two_devices_train_the_same(task, strategy):
    """Real processes with gloo, sharded too: losses of one process to float32's precision.

    Without dropout, which ranks draw each for itself.
    """
    still = [*TASKS[task], *TINY, *STEPS, *(["head.dropout=0"] if "classification" in task else [])]
    if not Path(f"{task}_still").is_dir():
        assert main(["train", *still, f"run_dir={task}_still"]) == 0
    run = f"{task}_{strategy.partition(' ')[0]}"
    command = [sys.executable, "-m", "txtrain", "train", *still, f"run_dir={run}"]
    two = ["trainer.devices=2", *f"strategy={strategy}".split()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *two], env=environment, timeout=600, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    one, other = ([row["loss"] for row in validations(name)] for name in (f"{task}_still", run))
    assert other == pytest.approx(one, rel=2e-4)
