"""A user's mistakes: one line, exit code 1, and nothing written or lost."""

from pathlib import Path

import pytest

from txtrain.cli import main

TEXT = Path(__file__).parent / "golden" / "text.txt"
TINY = ["model.dim=32", "model.num_layers=1", "data=text", "data.path=text.txt", "tokenizer=byte", "data.seq_len=32"]
TINY += ["logger=none", "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.limit_val_batches=1"]

MISTAKES = {
    "norm=preee": "did you mean norm=pre?",
    "nrom=pre": "norm",
    "+trainer=[1]": "trainer is one of default",
    "norm=[true]": "norm=[true] does not exist",
    "lora.rnk=8": "did you mean lora.rank?",
    "lora.rank=eight": "type lora.rank=8",
    "model.dim=36": "such as model.head_dim=10",
    "model.num_heads=5": "model.head_dim=",
    "encoding=xpos encoding.theta=-1": "encoding.theta",
    "data.path=missing.txt": "missing.txt does not exist",
    "data.path=empty.txt": "empty.txt is empty",
    "data.path=binary.txt": "binary.txt is",
    "data.seq_len=100000": "data.seq_len",
    "tokenizer=bpe tokenizer.vocab_size=100000": "tokenizer.vocab_size=",
    "trainer.devices=1000": "trainer.devices=1000 is more than",
    "optimizer=muon strategy=deepspeed_zero2": "strategy=ddp",
    "lora.rank=4 lora.targets=q_prj": "lora.targets=q_proj",
    "lora.base_dtype=nf4": "set lora.rank=8",
    "lora.base_dtype=bfloat16": "set lora.rank=8",
    "lora.rank=4 lora.base_dtype=nf4": "name them by init_from=FOLDER",
    "save.every=never": "save.every=30min",
    "optimizer.lr=-1": "optimizer.lr is -1",
    "trainer.precision=bf17": "bf17",
    "+trainer.accumulate_grad_batches=4": "data.micro_batch_size",
    "+trainer.min_epochs=3": "trainer.max_epochs",
    "+trainer.min_steps=99": "trainer.max_steps",
    "+trainer.enable_progress_bar=false": "the terminal",
    "model.num_layers=1000000": "model.num_layers=12",
    "model.vocab_size=1000000000000": "GiB of memory",
    "trainer.max_steps=-1": "trainer.max_epochs=1",
    "trainer.val_check_interval=0.5": "val_check_interval",
    "trainer.val_check_interval=0": "trainer.val_check_interval=100",
    "trainer.val_check_interval='00:00:00:10'": "trainer.val_check_interval=100",
    "trainer.log_every_n_steps=0": "trainer.log_every_n_steps=10",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val is -1",
    "+trainer.limit_train_batches=3": "trainer.max_steps",
    "seed=-1": "seed=1",
    "callbacks=timer": "has another place: type trainer.max_time=10min instead",
    "callbacks=[early_stopping,stochastic_weight_averaging]": "type ema.decay=0.999 instead",
    "callbacks=RichProgressBar": "leave it out",
    "save.best=perplexity trainer.limit_val_batches=0": "type trainer.limit_val_batches=1.0",
    "callbacks=early_stopping trainer.limit_val_batches=0.0": "callbacks=early_stopping needs validation",
    "optimizer=sgd optimizer.nesterov=true optimizer.momentum=0.0": "optimizer.momentum=0.9",
    "run_dir=damaged": "holds a run already",
    "resume=unreadable": "config.yaml cannot be read",
    "trainer.accelerator=quantum": "trainer.accelerator=auto",
    "run_dir=text.txt/run": "run_dir=text.txt/run cannot be written",
    "resume=nowhere": "resume=nowhere is no run directory",
    "resume=damaged": "damaged has no whole checkpoint",
    "resume=damaged norm=post": "norm=post",
    "init_from=nowhere": "init_from=nowhere is no run directory",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder, with a run whose only checkpoint was cut short."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "text.txt").write_bytes(TEXT.read_bytes())
    (folder / "empty.txt").touch()
    (folder / "binary.txt").write_bytes(bytes(range(256)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TXTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert main(["train", *TINY, "run_dir=damaged"]) == 0
        for file in Path("damaged/checkpoints").glob("step_*.ckpt/*.safetensors"):
            file.write_bytes(file.read_bytes()[:-100])
        (folder / "unreadable").mkdir()
        (folder / "unreadable" / "config.yaml").write_text("model: [")
        yield folder


def listing(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("typed", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_no_trace(typed, folder, capsys):
    before = listing(folder)
    assert main(["train", *([] if "resume" in typed else TINY), *typed.split()]) == 1
    printed = capsys.readouterr()
    [line] = printed.err.splitlines()
    assert line.startswith("error: ")
    assert MISTAKES[typed] in line
    assert listing(folder) == before


def test_a_finished_run_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(TEXT.read_bytes())
    monkeypatch.setenv("TXTRAIN_CACHE", str(tmp_path / "cache"))
    assert main(["train", *TINY, "run_dir=run"]) == 0
    assert main(["train", "resume=run"]) == 1
    assert "type trainer.max_steps=4" in capsys.readouterr().err
    assert main(["train", "resume=run", "trainer.max_steps=4"]) == 0
    assert '"steps": 4' in (tmp_path / "run" / "summary.json").read_text()
