"""`txtrain generate` on a real run: what it prints, what it reads, and what it refuses."""

import io
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.generate.models import llama_folder
from txtrain.cli import main
from txtrain.data.template import ChatTemplate
from txtrain.generate.reader import DecoderReader
from txtrain.trained import load_trained

TEXT = Path(__file__).parent.parent / "golden" / "text.txt"
RUN = [
    "data=text",
    f"data.path={TEXT}",
    "data.seq_len=64",
    "logger=none",
    "trainer.accelerator=cpu",
    "samples.length=0",
]
TINY = ["model.dim=32", "model.num_layers=2", "trainer.max_steps=60", "optimizer.lr=3e-3", "tokenizer=char"]
PROMPT = TEXT.read_text()[:12]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["train", *RUN, *TINY, "run_dir=run"]) == 0
    return folder / "run"


@pytest.fixture
def generate(run, capsys):
    """Runs the command → what it prints."""

    def generate(*arguments, model=run):
        code = main(["generate", str(model), "--device=cpu", *arguments])
        told = capsys.readouterr()
        assert code == 0, told.err
        return told.out

    return generate


@pytest.fixture
def refused(run, capsys):
    """Runs the command → the one line that says why it does not."""

    def refused(*arguments, model=run):
        assert main(["generate", str(model), *arguments]) == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert told.err.startswith("error: ")
        assert told.err.count("\n") == 1
        return told.err

    return refused


def likeliest(run, prompt, length):
    """By whole forward passes, without a cache."""
    trained = load_trained(run)
    tokens = trained.tokenizer.encode(prompt)
    for _ in range(length):
        token = int(trained.model(torch.tensor([tokens]))[0, -1].argmax())
        if token == trained.tokenizer.end_of_text:
            break
        tokens.append(token)
    return trained.tokenizer.decode(tokens)[len(prompt) :]


def test_a_run_and_its_checkpoints_write_the_likeliest_text(run, generate):
    expected = likeliest(run, PROMPT, 30)
    assert generate(PROMPT, "--max-new-tokens=30") == expected + "\n"
    assert generate(PROMPT, "--max-new-tokens=30", model=run / "checkpoints" / "last") == expected + "\n"
    assert generate(PROMPT, "--max-new-tokens=30", "--beams=1", "--top-k=1") == expected + "\n"
    assert len(generate(PROMPT, "--max-new-tokens=5", "--dtype=bfloat16")) == 6


def test_the_seed_decides_what_is_drawn(generate):
    draw = [PROMPT, "--temperature=1.5", "--top-p=0.95", "--min-p=0.01", "--max-new-tokens=40"]
    assert generate(*draw) == generate(*draw, "--seed=0")
    assert generate(*draw) != generate(*draw, "--seed=1")


def test_text_ends_with_the_context_or_before_a_stop_string(run, generate):
    whole = generate(PROMPT, "--max-new-tokens=1000")
    assert len(whole) == 64 - len(PROMPT) + 1
    assert generate(PROMPT, "--max-new-tokens=1000", "--context=80").startswith(whole[:-1])
    stop = whole[9:12]
    assert generate(PROMPT, "--stop", stop, "--stop=never") == whole[: whole.index(stop)] + "\n"
    assert generate(PROMPT, "--stop", stop, "--beams=2").find(stop) == -1


def test_what_ended_a_text_is_told_and_how_fast_it_came(run, capsys):
    told = partial(re.fullmatch, r"\((\d+) tokens?(?:, (\d+) per second)?; ended by (.*)\)\n")

    def err_of(*arguments):
        assert main(["generate", str(run), "--device=cpu", PROMPT, *arguments]) == 0
        return told(capsys.readouterr().err)

    full = f"length: the context of {12 + 9} is full, --context N allows more"
    assert err_of("--max-new-tokens=1000", "--context=21")[3] == full
    assert err_of("--max-new-tokens=9")[3] == "length"
    assert err_of("--max-new-tokens=1").groups() == ("1", None, "length")
    rates = [int(err_of("--max-new-tokens=40", *beams)[2]) for beams in ([], ["--beams=3"])]
    assert 0 < rates[1] < 10 * rates[0], "three beams cost more than one"


def test_blank_lines_of_a_file_are_counted(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("txtrain.data.progress.INTERVAL", 600)
    file = tmp_path / "prompts.txt"
    file.write_text("a\n\n \nb\n")
    assert main(["generate", str(run), "--file", str(file), "--context=5"]) == 0
    told = capsys.readouterr()
    assert [json.loads(line)["prompt"] for line in told.out.splitlines()] == ["a", "b"]
    full = "(2 of 2 ended by length: the context of 5 is full, --context N allows more)"
    assert told.err.splitlines() == [f"{file}: 2 blank lines left out", full]


def test_text_comes_as_it_is_written(run, generate, monkeypatch):
    """The first piece is printed before the last token is computed."""
    events = []
    read = DecoderReader.read
    monkeypatch.setattr(DecoderReader, "read", lambda *a: events.append("read") or read(*a))
    monkeypatch.setattr("txtrain.generate.command.shown", lambda piece: events.append("shown") or piece)
    generate(PROMPT, "--max-new-tokens=5")
    assert events == ["shown", "read"] * 4 + ["shown"]


@pytest.mark.parametrize("draw", [[], ["--temperature=1.2"], ["--beams=3"]], ids=" ".join)
def test_a_file_gives_what_its_prompts_give_one_by_one(generate, tmp_path, draw):
    prompts = [PROMPT, PROMPT[:3], PROMPT[:7], "a", "the"]
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(prompts) + "\n")
    options = [*draw, "--max-new-tokens=12"]
    rows = [json.loads(line) for line in generate("--file", str(file), "--batch-size=2", *options).splitlines()]
    assert [row["prompt"] for row in rows] == prompts
    alone = [generate(prompt, f"--seed={seed}", *options)[:-1] for seed, prompt in enumerate(prompts)]
    assert [row["text"] for row in rows] == alone
    assert all(row["tokens"] == len(row["text"]) or row["ended"] == "end" for row in rows)
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"prompt": prompt, "id": 1}) + "\n" for prompt in prompts))
    assert [json.loads(line) for line in generate("--file", str(lines), *options).splitlines()] == rows


def test_a_hugging_face_folder_writes_what_transformers_writes(generate, tmp_path):
    theirs = llama_folder(tmp_path)
    prompt = "né <|endoftext|>!"
    ids = torch.tensor([[*"né ".encode(), 256, ord("!")]])
    found = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, pad_token_id=0
    )
    text = bytes(token for token in found[0, ids.size(1) :].tolist() if token < 256).decode(errors="replace")
    assert generate(prompt, "--max-new-tokens=20", model=tmp_path) == text + "\n"


@pytest.fixture(scope="module")
def chat(run):
    """The same run with a chat template."""
    chat = shutil.copytree(run, run.with_name("chat"), symlinks=True)
    ChatTemplate.plain({"eos_token": "<|endoftext|>"}).save(chat)
    return chat


def test_a_chat_continues_what_the_template_makes_of_it(chat, generate, tmp_path, monkeypatch):
    generate = partial(generate, model=chat)
    rendered = "User: a<|endoftext|>\nAssistant:"
    first = generate("a", "--chat", "--max-new-tokens=6")
    assert first == generate(rendered, "--max-new-tokens=6")
    told = generate("a", "--chat", "--system=b", "--max-new-tokens=6")
    assert told == generate(f"System: b<|endoftext|>\n{rendered}", "--max-new-tokens=6")
    file = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "a"}]
    file.write_text(json.dumps({"messages": messages}) + "\n" + json.dumps({"prompt": "a"}) + "\n")
    rows = [json.loads(line) for line in generate("--chat", "--file", str(file), "--max-new-tokens=6").splitlines()]
    assert [row["messages"] for row in rows] == [messages, messages]
    assert [row["text"] + "\n" for row in rows] == [first, first]
    monkeypatch.setattr("sys.stdin", io.StringIO("a\n\nb\n"))
    talk = generate("--chat", "--max-new-tokens=6", "--context=200")
    assert talk.startswith(first)
    second = generate(
        f"{rendered} {first[:-1]}<|endoftext|>\nUser: b<|endoftext|>\nAssistant:", "--max-new-tokens=6", "--context=200"
    )
    assert talk[len(first) :] == second


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "no prompt is given: type txtrain generate MODEL"),
        ([""], "the prompt is empty: give some text"),
        (["a" * 64], "the prompt has 64 tokens, which leaves no room in the context of 64: shorten it, or type --cont"),
        (["a", "--file=b.txt"], "a prompt and --file are given: leave out one"),
        (["a", "--system=b"], "--system is for chats: add --chat"),
        (["a", "--stop="], "--stop is empty"),
        (["a", "--max-new-tokens=0"], "--max-new-tokens is 0: give 1 or more"),
        (["a", "--max-new-tokens=x"], "argument --max-new-tokens: invalid int value: 'x': see txtrain generate --help"),
        (["a", "--temperature=-1"], "temperature is -1.0: give 0 or more"),
        (["a", "--temperature=nan"], "temperature is nan: give 0 or more"),
        (["a", "--temperature=1e-300"], "temperature is 1e-300: give 0 for the likeliest token, or 0.0001 or more"),
        (["a", "--seed=9999999999999999999"], "--seed is 9999999999999999999: give a number of up to 18 digits"),
        (["a", "--beams=2", "--length-penalty=nan"], "--length-penalty is nan: give a number such as 1"),
        (["a", "--temperature=0", "--top-k=5"], "--temperature 0 takes the likeliest token: leave out --top-k"),
        (["a", "--top-k=0"], "top-k is 0: give 1 or more"),
        (["a", "--top-p=1.5"], "top-p is 1.5: give a share above 0 and up to 1"),
        (["a", "--min-p=0"], "min-p is 0.0: give a share above 0"),
        (["a", "--repetition-penalty=0"], "repetition penalty is 0.0: give more than 0"),
        (["a", "--beams=999"], "--beams 999 is more than the "),
        (["\udcff"], "the prompt has \\udcff alone, half of a character: remove it"),
        (["a", "--beams=2", "--top-k=3"], "--beams draws nothing: leave out --top-k or --beams"),
        (["a", "--device=tpu"], "--device tpu is unknown: give cpu"),
        (["a", "--device=cuda:99"], "--device cuda:99 is not here: give --device cpu"),
        (["a", "--dtype=int8"], "argument --dtype: invalid choice: 'int8'"),
        (["a", "--lenght=3"], "unrecognized arguments: --lenght=3: see txtrain generate --help"),
        (["--file=nowhere.txt"], "--file nowhere.txt cannot be read (No such file or directory): give .txt or .jsonl"),
    ],
)
def test_a_mistake_is_one_line(refused, arguments, words):
    assert words in refused(*arguments)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt"\n', "a.jsonl line 2 is not JSON"),
        ("a.jsonl", '{"text": "a"}\n', "a.jsonl line 1 has text: give a text as prompt"),
        ("a.jsonl", "[1]\n", "a.jsonl line 1 is list, not an object"),
        ("a.txt", "\n\n", "has no prompts: give a line each"),
        ("a.txt", "a\n" + "b" * 70, "a.txt line 2: the prompt has 70 tokens"),
        ("a.txt", b"\xff\xfe", "is not UTF-8 text (byte 0)"),
    ],
)
def test_a_mistake_in_a_file_is_one_line_with_its_place(refused, tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert words in refused("--file", str(file))


def test_what_is_no_model_is_told_in_one_line(refused, tmp_path):
    assert "nowhere does not exist: name a run" in refused("a", model=tmp_path / "nowhere")
    assert "has neither config.yaml nor config.json" in refused("a", model=tmp_path)
    assert "has no chat template: leave out --chat" in refused("a", "--chat")


def test_help_shows_all_options(capsys):
    with pytest.raises(SystemExit) as end:
        main(["generate", "--help"])
    assert end.value.code == 0
    assert "--repetition-penalty" in capsys.readouterr().out
