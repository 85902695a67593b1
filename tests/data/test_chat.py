"""Chat data: rows packed whole, the assistant's tokens as targets, on any number of ranks, told and audited."""

import json
import math
from collections import Counter
from collections.abc import Sized
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.data.templates import CHATML, GENERATION, make_folder
from txtrain.cli import main
from txtrain.config import config_directory
from txtrain.data.chat import ChatData
from txtrain.data.conversation import new_conversation
from txtrain.data.loader import EvaluationLoader, StepLoader
from txtrain.data.order import Shuffled
from txtrain.data.rows import pack
from txtrain.data.stdlib import StandardLibrary
from txtrain.data.tokenizer import BPE, Byte, Pretrained
from txtrain.data.turns import TurnEncoder
from txtrain.errors import UserError
from txtrain.train import model_function

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "said", "it", "is", "four,", "é", "日本"]


def conversation(number: int) -> dict[str, Any]:
    """Of a length of its own, with one to three answers."""
    random = np.random.default_rng(number)
    text = lambda most: " ".join(random.choice(WORDS, random.integers(1, most)))  # noqa: E731
    turns = [("user", 5), ("assistant", 12)] * random.integers(1, 4)
    return {"messages": [{"role": role, "content": f"{number} {text(most)}"} for role, most in turns]}


ROWS = [conversation(number) for number in range(40)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("chat")
    write(place / "my.jsonl", ROWS)
    pytest.importorskip("transformers")
    make_folder(place / "model", CHATML)
    return place


def data(folder: Path, **options: Any) -> ChatData:
    options = {"tokenizer": Pretrained(path=str(folder / "model")), "seq_len": 256} | options
    made = ChatData(**{"path": str(folder / "my.jsonl"), "cache_dir": str(folder / "cache")} | options)
    made.prepare()
    return made


def rows_of(made: ChatData, split: Any) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The rows of a split, read back from batches: tokens and targets of each document that holds a target."""
    windows, found = made.samples(split), Counter()
    batch = windows.batch(np.arange(len(windows)))
    for line in range(len(windows)):
        for number in batch["documents"][line].unique():
            mine = batch["documents"][line] == number
            assert batch["positions"][line][mine].tolist() == list(range(int(mine.sum())))
            targets = batch["targets"][line][mine]
            if (targets >= 0).any():
                found[tuple(batch["tokens"][line][mine].tolist()), tuple(targets.tolist())] += 1
    return found


def expected(made: ChatData, rows: list[Any], most: int = 10**9) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    turns = made.encoder.encode([new_conversation(row, "") for row in rows])
    found = Counter()
    for turn in turns:
        targets = np.where(turn.assistant, turn.tokens, -100)[1 : most + 1].tolist()
        if any(target >= 0 for target in targets):
            found[tuple(turn.tokens[:-1][:most].tolist()), tuple(targets)] += 1
    return found


def test_every_row_is_in_one_window_whole_with_the_assistants_tokens_as_targets(folder: Path) -> None:
    made = data(folder)
    found = rows_of(made, "train") + rows_of(made, "validation")
    assert found == expected(made, ROWS)
    assert 1 <= made.samples("validation").told.rows <= 12
    for split, tokens in (("train", made.train_tokens), ("validation", made.validation_tokens)):
        windows = made.samples(split)
        assert int((windows.batch(np.arange(len(windows)))["targets"] >= 0).sum()) == tokens
    assert len(made.samples("train")) < made.samples("train").told.rows


def test_an_empty_row_of_a_batch_has_no_target(folder: Path) -> None:
    batch = data(folder).samples("train").batch(np.array([-1, 0]))
    assert (batch["targets"][0] == -100).all() and (batch["targets"][1] >= 0).any()
    assert batch["index"].tolist() == [-1, 0]


def test_a_step_knows_how_many_tokens_it_learns_and_how_many_it_reads(folder: Path) -> None:
    made = data(folder)
    samples = made.samples("train")
    lengths = [len(turn.tokens) - 1 for turn in made.encoder.encode([new_conversation(row, "") for row in ROWS])]
    order = Shuffled(size=len(samples), batch_size=3, seed=0)
    loaders = [StepLoader(samples, order=order, micro=1, accumulation=2, ranks=2, rank=rank) for rank in (0, 1)]
    batches = [batch for loader in loaders for batch in loader]
    assert sum(int(batch["step_tokens"]) for batch in batches) == 2 * made.train_tokens, "told in both micro-batches"
    read = sum(int(batch["step_read"]) for batch in batches) // 2
    rest = made.samples("validation")
    assert read + int(rest.batch(np.arange(len(rest)))["num_tokens"].sum()) == sum(lengths)
    assert "num_tokens" not in batches[0]


@pytest.mark.parametrize("seed", range(20))
def test_packing_fills_windows_and_loses_nothing(seed: int) -> None:
    random = np.random.default_rng(seed)
    room = int(random.integers(1, 200))
    lengths = random.integers(1, room + 1, size=random.integers(0, 300))
    windows = pack(lengths, room)
    assert sorted(item for window in windows for item in window) == list(range(len(lengths)))
    assert all(lengths[window].sum() <= room for window in windows)
    assert (
        len(windows)
        <= 11 / 9 * math.ceil(lengths.sum() / room) + max(1, len(lengths) // 2) * (lengths > room // 2).any()
    )
    assert windows == pack(lengths.copy(), room)
    fullest = sorted((int(lengths[window].sum()) for window in windows), reverse=True)
    assert sum(total <= room // 2 for total in fullest) <= 1, "two windows would have been one"


def test_a_row_that_is_packed_predicts_what_it_does_alone(folder: Path) -> None:
    windows = data(folder).samples("train")
    sizes = ["model.dim=32", "model.num_layers=2", "model.num_heads=2", "model.num_kv_heads=1", "encoding=alibi"]
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = hydra.compose("train", overrides=sizes)
    parts = {name: instantiate(node, _convert_="all") for name, node in config.items() if OmegaConf.is_config(node)}
    torch.manual_seed(0)
    model = model_function(parts)(vocab_size=332, max_len=256).eval()
    batch = windows.batch(np.arange(2))
    packed = model(batch["tokens"], batch["positions"], documents=batch["documents"])
    for line, number in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        mine = batch["documents"][line] == number
        alone = model(batch["tokens"][line, mine][None])[0]
        torch.testing.assert_close(packed[line, mine], alone, rtol=1e-5, atol=1e-5)


def test_rows_that_are_too_long_are_cut_or_left_out_and_counted(folder: Path) -> None:
    for seq_len in (40, 60):
        made = data(folder, seq_len=seq_len)
        assert rows_of(made, "train") + rows_of(made, "validation") == expected(made, ROWS, seq_len)
        lengths = [len(turn.tokens) for turn in made.encoder.encode([new_conversation(row, "") for row in ROWS])]
        longer = sum(length - 1 > seq_len for length in lengths)
        told = made.details()["too long"]
        assert told.startswith(f"{longer} of more than data.seq_len={seq_len} tokens, cut there")
        lost = len(ROWS) - sum(expected(made, ROWS, seq_len).values())
        assert ("left out" in told) == (lost > 0)
        assert not lost or f"; {lost} left out, with no token of the assistant" in told
        windows = made.samples("validation")
        assert made.validation_tokens == (windows.batch(np.arange(len(windows)))["targets"] >= 0).sum()
    dropping = data(folder, seq_len=60, too_long="drop")
    kept = [row for row, length in zip(ROWS, lengths, strict=True) if length - 1 <= 60]
    assert rows_of(dropping, "train") + rows_of(dropping, "validation") == expected(dropping, kept)
    assert dropping.details()["too long"] == f"{longer} of more than data.seq_len=60 tokens, left out"
    with pytest.raises(UserError, match=r"^data\.seq_len=4 is too short for all .* tokens: set data\.seq_len=\d+$"):
        data(folder, seq_len=4)


def test_the_length_statistics_are_those_of_the_training_rows(folder: Path) -> None:
    made = data(folder)
    lengths = sorted(len(tokens) + 1 for tokens, _ in rows_of(made, "train").elements())
    told = made.samples("train").told
    assert (told.rows, told.longest) == (len(lengths), lengths[-1])
    assert told.median == lengths[math.ceil((len(lengths) - 1) * 0.5)]
    assert told.long == lengths[math.ceil((len(lengths) - 1) * 0.95)]
    assert told.filled == pytest.approx((sum(lengths) - len(lengths)) / (256 * len(made.samples("train"))))
    assert f"{told.median} tokens (median), 95% at most {told.long}, longest {told.longest}" in str(made.details())


def test_validation_bytes_are_those_of_the_assistants_text(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "held.jsonl", ROWS[:7])
    made = data(folder, validation_path=str(tmp_path / "held.jsonl"))
    assert (made.samples("train").told.rows, made.samples("validation").told.rows) == (40, 7)
    said = [message for row in ROWS[:7] for message in row["messages"] if message["role"] == "assistant"]
    assert made.validation_bytes == sum(len(f"{message['content']}\n".encode()) for message in said)
    cut = data(folder, validation_path=str(tmp_path / "held.jsonl"), seq_len=40)
    windows = cut.samples("validation")
    targets = windows.batch(np.arange(len(windows)))["targets"]
    text = cut.tokenizer.decode([token for token in targets[targets >= 0].tolist() if token > 9])
    assert abs(cut.validation_bytes - len(text.encode(errors="ignore"))) <= 4 * len(ROWS)


def order(windows: Sized, seed: int = 0) -> Shuffled:
    return Shuffled(size=len(windows), batch_size=4, seed=seed)


def test_the_order_is_that_of_any_number_of_ranks(folder: Path) -> None:
    windows = data(folder, seq_len=96).samples("train")
    for make in (
        lambda **placed: StepLoader(windows, order=order(windows, seed=3), **placed),
        lambda **placed: EvaluationLoader(windows, order=order(windows), **placed),
    ):
        one = [batch["index"].tolist() for batch in make(micro=4, accumulation=1, rank=0, ranks=1)]
        two = [make(micro=1, accumulation=2, rank=rank, ranks=2) for rank in (0, 1)]
        halves = [[batch["index"].tolist() for batch in loader] for loader in two]
        for step, whole in enumerate(one):
            parts = [index for half in halves for batch in half[2 * step : 2 * step + 2] for index in batch]
            assert sorted(index for index in parts if index >= 0) == sorted(index for index in whole if index >= 0)


def test_the_split_goes_by_the_conversation_and_the_cache_by_what_made_it(
    folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    made = data(folder)
    held = set(rows_of(made, "validation"))
    write(tmp_path / "turned.jsonl", ROWS[::-1])
    assert set(rows_of(data(folder, path=str(tmp_path / "turned.jsonl")), "validation")) == held
    with monkeypatch.context() as patch:
        patch.setattr(TurnEncoder, "encode", lambda *_: pytest.fail("tokenized again"))
        again = data(folder, seq_len=77, too_long="drop", batch_size=3)
    assert again.folder == made.folder
    (tmp_path / "other.jinja").write_text(GENERATION)
    assert data(folder, template=str(tmp_path / "other.jinja")).folder != made.folder
    assert made.fingerprint() == made.folder.name, "the fingerprint does not depend on what is loaded"


@pytest.mark.parametrize("tokenizer", [Byte, lambda: BPE(vocab_size=270)])
def test_any_tokenizer_has_a_plain_template(folder: Path, tokenizer: Any) -> None:
    made = data(folder, tokenizer=tokenizer(), seq_len=512)
    assert made.details()["chat template"] == "plain (Role: text), the tokenizer has none"
    [first, *_] = rows_of(made, "train")
    assert made.tokenizer.decode(list(first[0])).startswith("User: ")
    assert made.end_tokens == {made.tokenizer.end_of_text}


def test_a_prompt_is_rendered_and_without_one_it_is_the_first_question(folder: Path) -> None:
    made = data(folder)
    asked = made.tokenizer.core.decode(made.prompt("a cat?"), skip_special_tokens=False)
    assert asked.endswith("<|im_start|>user\na cat?<|im_end|>\n<|im_start|>assistant\n")
    windows = made.samples("validation")
    first = next(iter(EvaluationLoader(windows, order=order(windows), micro=2, accumulation=2)))
    prompt = made.prompt(None)
    assert prompt == first["tokens"][0, : len(prompt)].tolist()
    assert (first["targets"][0, : len(prompt) - 1] == -100).all() and first["targets"][0, len(prompt) - 1] >= 0
    assert len(made.end_tokens) == 2


@pytest.mark.parametrize("tokenizer", [None, Byte()], ids=["chatml", "plain"])
def test_of_a_prompt_people_see_the_question(folder: Path, tokenizer: Any) -> None:
    made = data(folder, **({"tokenizer": tokenizer} if tokenizer else {}))
    assert made.shown_prompt(made.prompt("what is\na cat?")) == "what is\na cat?"
    questions = {row["messages"][0]["content"] for row in ROWS}
    assert made.shown_prompt(made.prompt(None)) in questions
    several = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    assert made.shown_prompt(made.encoder.prompt(several)) == "c"


def test_text_begins_validation_with_the_window_that_the_loader_begins_with(tmp_path: Path) -> None:
    made = StandardLibrary(tokenizer=Byte(), cache_dir=str(tmp_path), seq_len=32)
    made.documents = lambda: iter([("a", "abcdefgh" * 50), ("b", "ijklmnop" * 50)])
    made.prepare()
    windows = made.samples("validation")
    first = next(iter(EvaluationLoader(windows, order=order(windows), micro=2, accumulation=2)))
    assert made.prompt(None) == first["tokens"][0, :16].tolist()
    assert made.prompt("hi") == [*b"hi"]


MISTAKES = {
    '{"messages": [': "line 2 is not JSON",
    '{"messages": []}': "line 2: messages is empty",
    '{"messages": [{"role": "bot", "content": "x"}, {"role": "assistant", "content": "y"}]}': "line 2: message 1 of",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_bad_line_is_named_by_file_and_number(folder: Path, tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.jsonl").write_text(f"{json.dumps(ROWS[0])}\n{line}\n")
    with pytest.raises(UserError, match=f"bad.jsonl {MISTAKES[line]}") as caught:
        data(folder, path=str(tmp_path / "bad.jsonl"))
    assert "\n" not in str(caught.value)
    assert not list((folder / "cache").glob("*.partial*"))


def test_files_and_templates_that_do_not_serve(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "broken.jinja").write_text("{% for x in messages %}")
    (tmp_path / "bytes.jinja").write_bytes(b"\xff")
    write(tmp_path / "one.jsonl", ROWS[:1])
    for options, message in [
        ({"path": str(tmp_path / "a.txt")}, r"data\.path: .*a\.txt is no \.jsonl: give one JSON object per line"),
        ({"path": str(tmp_path / "empty.jsonl")}, "holds no conversation: give some"),
        ({"path": str(tmp_path / "one.jsonl")}, r"too few conversations .* data\.validation_path=FILE"),
        ({"template": str(tmp_path / "none.jinja")}, r"data\.template=.*none\.jinja cannot be read"),
        ({"template": str(tmp_path / "bytes.jinja")}, r"data\.template=.*bytes\.jinja cannot be read"),
        ({"template": str(tmp_path / "broken.jinja")}, r"is no Jinja \(.*broken\.jinja, line 1: .*data\.template=FILE"),
        (
            {"template": str(tmp_path / "a.txt")},
            r"a\.txt\) writes nothing of the assistant .*: set data\.template=FILE",
        ),
    ]:
        with pytest.raises(UserError, match=message):
            data(folder, **options)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    write(mixed / "my.jsonl", ROWS)
    (mixed / "README.md").write_text("about")
    assert sum(rows_of(data(folder, path=str(mixed)), "train").values()) > 20


QUICK = ["data=chat", "data.path=my.jsonl", "data.seq_len=160", "data.batch_size=4", "logger=none"]
QUICK += ["trainer.accelerator=cpu", "samples.length=6"]
SMALL = ["model.dim=32", "model.num_layers=1", "tokenizer=pretrained"]


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A model that was trained on conversations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        model = f"tokenizer.path={folder / 'model'}"
        assert main(["train", *QUICK, *SMALL, model, "trainer.max_steps=6", "save.every=3", "run_dir=base"]) == 0
    return folder / "base"


@pytest.fixture
def here(run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(run.parent)
    monkeypatch.setenv("TXTRAIN_CACHE", str(run.parent / "cache"))
    return run.parent


def test_a_run_tells_its_conversations_and_keeps_the_template(here: Path) -> None:
    told = (here / "base/train.log").read_text()
    for words in ("conversations  ", "tokens (median)", "of more than data.seq_len=160 tokens, cut there", "windows  "):
        assert words in told
    assert str(here / "model/chat_template.jinja") in told
    assert (here / "base/chat_template.jinja").read_text() == CHATML
    assert json.loads((here / "base/tokenizer_config.json").read_text())["eos_token"] == "</s>"
    summary = json.loads((here / "base/summary.json").read_text())
    made = data(here, seq_len=160)
    bits = summary["validation_loss"] / math.log(2) * made.validation_tokens / made.validation_bytes
    assert summary["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
    assert summary["sample_before"] is None


def losses(run_dir: Path) -> dict[tuple[int, str], float]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {(row["step"], name): row[name] for row in rows for name in row if name.endswith(("loss", "train/tokens"))}


def test_a_run_on_conversations_goes_on_as_if_it_had_not_stopped(here: Path) -> None:
    """In its second epoch, with micro-batches of another size; losses are sums over the assistant's tokens."""
    options = [
        f"tokenizer.path={here / 'model'}",
        "schedule=constant",
        "schedule.warmup=2",
        "trainer.log_every_n_steps=1",
    ]
    options += ["trainer.val_check_interval=5", "data.num_workers=0"]
    assert main(["train", *QUICK, *SMALL, *options, "trainer.max_steps=8", "run_dir=whole"]) == 0
    assert main(["train", *QUICK, *SMALL, *options, "trainer.max_steps=5", "run_dir=half"]) == 0
    assert main(["train", "resume=half", "trainer.max_steps=8", "data.micro_batch_size=1"]) == 0
    assert losses(here / "half") == pytest.approx(losses(here / "whole"), rel=1e-5)
    assert len(losses(here / "whole")) == 8 * 2 + 2


def test_lora_chat_adapts_a_model_and_shows_its_answer_before_and_after(here: Path, capsys: Any) -> None:
    command = ["experiment=lora_chat", "init_from=base", "data.path=my.jsonl", "data.seq_len=160", "samples.length=6"]
    command += ["logger=none", "trainer.accelerator=cpu", "optimizer.lr=2e-2", "trainer.log_every_n_steps=1"]
    command += ["samples.prompt='what is a cat?'", "data.batch_size=2", "trainer.max_epochs=2"]
    assert main(["train", *command, "run_dir=adapted"]) == 0
    told = capsys.readouterr().out
    summary = json.loads((here / "adapted/summary.json").read_text())
    base = json.loads((here / "base/summary.json").read_text())
    assert summary["validation_loss"] < base["validation_loss"]
    assert summary["trainable_parameters"] < summary["parameters"] - base["parameters"] + 1
    assert summary["sample_before"].startswith("what is a cat? → ")
    assert summary["sample"].startswith("what is a cat? → ")
    assert summary["sample_before"] != summary["sample"]
    assert "sample at step 0  " in told and "sample before  " in told and "\nsample  " in told
    log = (here / "adapted/train.log").read_text()
    assert "sample at step 0  " in log and "sample before  " in log
    measured = losses(here / "adapted")
    assert summary["before"]["loss"] == measured[0, "validation/loss"]
    assert summary["before"]["loss"] == pytest.approx(base["validation_loss"], rel=1e-5)
    assert main(["train", *command, "trainer.limit_val_batches=0", "run_dir=unmeasured"]) == 0
    trained = {key: value for key, value in measured.items() if key[1].startswith("train/")}
    assert losses(here / "unmeasured") == trained, "measuring it first leaves no trace in training"
    assert (here / "adapted/chat_template.jinja").read_text() == CHATML


def test_audit_shows_the_rows_that_a_step_saw(here: Path, capsys: Any) -> None:
    assert main(["audit", "base", "1..2", "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["data_unchanged"]
    made = data(here, seq_len=160)
    lines = (here / "my.jsonl").read_text().splitlines()
    for sample in (sample for step in outcome["steps"] for sample in step["samples"]):
        batch = made.samples("train").batch(np.array([sample["index"]]))
        places = [place.rpartition(" line ") for place in sample["rows"]]
        assert {Path(file).name for file, _, _ in places} == {"my.jsonl"}
        texts = sample["text"].split(" | ")
        for number, ((_, _, line), text) in enumerate(zip(places, texts, strict=True)):
            row = batch["tokens"][0, batch["documents"][0] == number].tolist()
            whole = made.tokenizer.decode(row)
            assert text.strip("\N{REPLACEMENT CHARACTER}\n") in whole and len(text) > 20
            question, answer = (turn["content"] for turn in json.loads(lines[int(line) - 1])["messages"][:2])
            assert question in whole
            assert f"<|im_start|>assistant\n{answer}"[:30] in text, "what all rows begin with says nothing of this one"
    assert main(["audit", "base", "1"]) == 0
    first = capsys.readouterr().out.splitlines()[2]
    assert "my.jsonl line " in first and "<|im_start|>assistant⏎" in first
