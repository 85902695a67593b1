"""Every command of docs/finetune.md, in its order, on a small model's folder, and its lines for transformers."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.data.templates import CHATML, make_folder
from txtrain.cli import COMMANDS, main

transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/finetune.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE, flags=re.DOTALL)
LINES = list(dict.fromkeys(line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()))
SMALL = ["logger=none", "trainer.accelerator=cpu", "data.seq_len=96", "data.batch_size=2", "optimizer.lr=1e-2"]
SMALL += ["samples.length=8", "save.every=1000"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model's folder and a file of conversations."""
    folder = tmp_path_factory.mktemp("finetune")
    make_folder(folder / "model", CHATML)  # texts end otherwise than turns
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    turns = [[("user", f"What is {n} + {n}?"), ("assistant", f"It is {2 * n}.")] for n in range(30)]
    rows = [{"messages": [{"role": role, "content": content} for role, content in turn]} for turn in turns]
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_page_takes_a_folder_and_conversations_to_a_model_in_transformers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TXTRAIN_CACHE", str(folder / "cache"))

    def run(command: str) -> str:
        words = shlex.split(command)
        assert words[0] in ("python", "txtrain") and words[1] in ("train.py", *COMMANDS)
        assert main(["train", *words[2:], *SMALL] if words[0] == "python" else words[1:]) == 0
        return capsys.readouterr().out

    train, ask, export, ask_again = LINES[:4]
    assert "sample before  " in run(train)
    summary = json.loads((folder / "runs/mine/summary.json").read_text())
    [rows] = (folder / "cache").rglob("train.rows.npy")
    read = np.minimum(np.diff(np.load(rows)["start"]) - 1, 96).sum()
    assert summary["tokens"] == 3 * read, "three passes, and what is not learned is read too"
    answer = run(ask)
    run(export)
    assert run(ask_again) == answer, "the exported model answers as the run does"
    assert (folder / "merged/chat_template.jinja").read_text() == CHATML
    ends = json.loads((folder / "merged/generation_config.json").read_text())["eos_token_id"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    assert set(tokenizer.convert_ids_to_tokens(ends)) == {"</s>", "<|im_end|>"}
    [lines] = [block for kind, block in BLOCKS if kind == "python"]
    assert shlex.split(ask)[-1] in lines
    exec(lines, {})
    assert capsys.readouterr().out.split() == answer.split()


def test_the_other_commands_of_the_page_are_those_with_more_options() -> None:
    first = [shlex.split(command) for command in LINES[:4]]
    for command in LINES[4:]:
        words = shlex.split(command)
        assert any(set(known) <= set(words) for known in first), command
