"""Wrote tests/frozen/runs.tar.xz and expected.json with the code of commit 2105a80: runs of an earlier version.

    git worktree add ../2105a80 2105a80    # copy this file and tests/frozen/runs.yaml there, and run it there:
    PYTHONPATH=. python scripts/freeze.py

Later versions must load, evaluate, export and resume these runs, so they are never made anew.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from contextlib import chdir, redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from tests.data.templates import make_folder
from tests.task.examples import write_labelled, write_pairs, write_sounds, write_tagged
from txtrain.saving.parts import STATE, Part

ROOT = Path(__file__).parent.parent
FROZEN = ROOT / "tests" / "frozen"
PACKED, EXPECTED = FROZEN / "runs.tar.xz", FROZEN / "expected.json"
PLACE = "/FROZEN"  # stands in the packed runs for the folder in which they were trained
STEPS, MORE = 6, 3
SIZES = ["model.dim=16", "model.num_layers=1", "model.num_heads=2"]  # a trained model has its own
DATA = ["data.batch_size=8", "data.validation_fraction=0.3"]
SEQUENCES = ["data.seq_len=32"]
COMMON = [
    "logger=none",
    "trainer.accelerator=cpu",
    f"trainer.max_steps={STEPS}",
    "trainer.log_every_n_steps=1",
    "optimizer.lr=0.01",
    "samples.length=0",
    "save.keep=1",
]


def run_overrides() -> dict[str, list[str]]:
    """What was typed for each run, by its name."""
    lines = yaml.safe_load((FROZEN / "runs.yaml").read_text())
    return {name: [*typed.split(), *_common(typed)] for name, typed in lines.items()}


def _common(typed: str) -> list[str]:
    sizes = [] if "init_from" in typed else SIZES
    data = DATA[1:] if "data=pairs" in typed else DATA
    sequences = [] if "=image_folder" in typed or "=audio_folder" in typed else SEQUENCES
    chosen = [*COMMON, *sizes, *data, *sequences]
    return [override for override in chosen if override.partition("=")[0] + "=" not in typed]


def trained_runs(folder: Path) -> dict[str, Path]:
    """The frozen runs in a folder by name; each job of a sweep is one."""
    found = {name: folder / "runs" / name for name in run_overrides() if name != "sweep"}
    return found | {f"sweep/{job}": folder / "runs" / "sweep" / str(job) for job in (0, 1)}


def write_data(folder: Path) -> None:
    """What the runs are trained on, and a Llama whose tokenizer puts <s> before each text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    (folder / "data").mkdir()
    (folder / "data/text.txt").write_text((ROOT / "tests/golden/text.txt").read_text()[:6000])
    write_labelled(folder / "data/rows.jsonl", rows=60)
    write_tagged(folder / "data/tags.jsonl", rows=40)
    write_pairs(folder / "data/pairs.tsv")
    write_sounds(folder / "data/sounds", clips=16)
    draw = np.random.default_rng(0)
    for number in range(24):
        path = folder / "data/images" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 128, (8, 8, 3), dtype=np.uint8) + np.uint8(127 * (number % 2))).save(path)
    chats = [[("user", f"{n} + 1?"), ("assistant", f"{n + 1}")] for n in range(20)]
    rows = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
    (folder / "data/chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    template = "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    file = make_folder(folder / "llama", template) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    begin = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = TemplateProcessing("<s> $A", "<s> $A <s> $B", [begin])
    tokenizer.save(str(file))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        bos_token_id=begin[1],
        eos_token_id=tokenizer.token_to_id("</s>"),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "llama")


def relocate(folder: Path, old: str, new: str) -> None:
    """Rewrites the absolute paths in runs and their checkpoints, as their user would who moved them."""
    for path in folder.rglob("*"):
        if path.suffix in (".yaml", ".json", ".txt", ".log", ".csv", ".jsonl", ".md") and path.is_file():
            text = path.read_text()
            if old in text:
                path.write_text(text.replace(old, new))
    for path in folder.rglob(STATE):
        if path.parent.is_symlink():
            continue
        state: dict[str, Any] = torch.load(path, weights_only=True)
        if state.get("base") and old in state["base"]["path"]:
            state["base"]["path"] = state["base"]["path"].replace(old, new)
            torch.save(state, path)
            manifest = json.loads((path.parent / "manifest.json").read_text())
            files = [asdict(Part.of(path)) if each["name"] == STATE else each for each in manifest["files"]]
            (path.parent / "manifest.json").write_text(json.dumps(manifest | {"files": files}))


def unpack(folder: Path) -> Path:
    """Puts the frozen runs and what they need into a folder, as if they had been trained there."""
    with tarfile.open(PACKED) as archive:
        archive.extractall(folder, filter="tar")
    relocate(folder, PLACE, str(folder))
    return folder


def pack(folder: Path) -> None:
    relocate(folder, str(folder), PLACE)
    with tarfile.open(PACKED, "w:xz") as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def txtrain(*words: str) -> tuple[int, str]:
    """The exit code of a command in this process, on one thread, and what it printed."""
    from txtrain.cli import main

    threads, printed = torch.get_num_threads(), StringIO()
    torch.set_num_threads(1)
    try:
        with redirect_stdout(printed):
            code = main(list(words))
    finally:
        torch.set_num_threads(threads)
    return code or 0, printed.getvalue()


def evaluated(run: Path) -> dict[str, Any]:
    """What `txtrain eval` says of a run."""
    file = run.with_name(f"{run.name}-evaluated.json")
    code, printed = txtrain("eval", str(run), "trainer.accelerator=cpu", "trainer.devices=1", "--json", str(file))
    assert code == 0, printed
    [line] = file.read_text().splitlines()
    return {key: value for key, value in json.loads(line).items() if isinstance(value, float)}


def written(run: Path) -> str | None:
    """What `txtrain generate` writes; None of a run that writes no texts."""
    chat = ["--chat"] if (run / "chat_template.jinja").is_file() else []
    code, printed = txtrain("generate", str(run), "red the ", *chat, "--max-new-tokens", "8", "--device", "cpu")
    return None if code else printed


def losses(run: Path) -> list[float]:
    """The losses of the last steps."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if row.get("step", 0) > STEPS and "train/loss" in row]


def copied(run: Path) -> Path:
    """A copy of a run beside it, to be resumed while others start from the run."""
    return shutil.copytree(run, run.with_name(f"{run.name}-resumed"), symlinks=True)


def record(name: str, run: Path) -> dict[str, Any]:
    """What a later version is to repeat."""
    found: dict[str, Any] = {}
    try:
        found["evaluated"] = evaluated(run)
    except AssertionError:
        found["evaluated"] = None  # a fault of the commit
    found["written"] = written(run)
    try:
        found["exported"] = txtrain("export", str(run), str(run.with_name(f"{run.name}-exported")))[0] == 0
    except Exception:
        found["exported"] = None  # a fault of the commit
    end = copied(run)
    command = [f"resume={end}", f"trainer.max_steps={STEPS + MORE}"]
    if name == "zero2":
        start(*command)
    else:
        assert txtrain("train", *command)[0] == 0
    found["losses"] = losses(end)
    assert len(found["losses"]) == MORE
    return found


def start(*words: str) -> None:
    """Trains in a process of its own, which may start others."""
    subprocess.run([sys.executable, str(ROOT / "train.py"), *words], check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        os.environ |= {"TXTRAIN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        with chdir(folder):
            write_data(folder)
            for name, typed in run_overrides().items():
                if name == "sweep":
                    start("-m", *typed)
                elif name == "zero2":
                    start(*typed, f"run_dir=runs/{name}")
                else:
                    assert txtrain("train", *typed, f"run_dir=runs/{name}")[0] == 0, name
            shutil.rmtree(folder / "cache")
            pack(folder)
    with tempfile.TemporaryDirectory() as temporary:
        folder = unpack(Path(temporary).resolve())
        with chdir(folder):
            expected = {name: record(name, run) for name, run in trained_runs(folder).items()}
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
