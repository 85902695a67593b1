"""Files of a run that anybody may have written or damaged: each use of the run works, or says why in one line."""

import builtins
import io
import json
import os
import random
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from txtrain.callbacks.rows import Rows
from txtrain.cli import main
from txtrain.compare.sweep import Sweep
from txtrain.errors import UserError
from txtrain.saving import find_checkpoint, list_checkpoints
from txtrain.saving.manifest import MANIFEST, damage
from txtrain.saving.parts import STATE, Part
from txtrain.trained import load_trained

TEXT = Path(__file__).parent / "golden" / "text.txt"
TINY = ["model.dim=32", "model.num_layers=1", "data=text", "data.path=text.txt", "tokenizer=byte", "data.seq_len=32"]
TINY += ["logger=none", "trainer.accelerator=cpu", "trainer.limit_val_batches=1", "samples.length=0"]
GENERATE = ["generate", "run", "a", "--max-new-tokens", "1", "--device", "cpu"]
RESUME = ["train", "resume=run", "trainer.max_steps=3"]
EVAL = ["eval", "run", "trainer.accelerator=cpu", "trainer.limit_val_batches=1"]
USES = [
    GENERATE,
    RESUME,
    EVAL,
    ["export", "run", "out"],
    ["audit", "run", "1"],
    ["predict", "run", "text.txt"],
    ["train", *TINY, "trainer.max_steps=1", "init_from=run", "dry_run=true"],
]
FILES = ["config.yaml", "data.json", "metrics.jsonl", "summary.json", "tokenizer.json", "overrides.txt"]
FILES += [f"checkpoints/step_00000002.ckpt/{name}" for name in (MANIFEST, STATE)]
VALUES = [None, [], {}, "x", "", -1, 0, 10**12, 1.5, True, [[]], [{}], "${oc.env:HOME}", float("nan"), 10**400, "\0"]
CASES = 36


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder with a run of two steps."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "text.txt").write_bytes(TEXT.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("TXTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert main(["train", *TINY, "trainer.max_steps=2", "run_dir=run"]) == 0
        yield folder


@pytest.fixture
def home(folder, tmp_path, monkeypatch):
    """A copy of it."""
    shutil.copytree(folder, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def told(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str | None:
    """The line of a use that is refused; None where it works."""
    capsys.readouterr()
    code = main(list(arguments))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) in ((0, 0), (1, 1)), arguments
    return lines[0] if lines else None


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value: Any, rng: random.Random) -> Any:
    """A value, one part of which is another, is gone or has another name."""
    *parents, key = rng.choice([place for place in places(value) if place] or [(None,)])
    if key is None or rng.random() < 0.1:
        return rng.choice(VALUES)
    inner = value
    for parent in parents:
        inner = inner[parent]
    how = rng.choice(["value", "value", "gone", "renamed"])
    if how == "value":
        inner[key] = rng.choice(VALUES)
    elif how == "renamed" and isinstance(inner, dict):
        inner[f"x{key}"] = inner.pop(key)
    else:
        del inner[key]
    return value


def mutate(path: Path, rng: random.Random) -> None:
    """Damages a file as accidents and attackers do."""
    content = path.read_bytes()
    kind = rng.choice(
        ["empty", "half", "noise", "folder", "loop", "pipe", "gone", "null", "list", "deep", *["value"] * 8]
    )
    if kind == "value" and path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(changed(yaml.safe_load(content), rng), sort_keys=False))
        return
    if kind == "value" and path.suffix == ".json":
        path.write_text(json.dumps(changed(json.loads(content), rng)))
        return
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "gone":
        texts = {"empty": b"", "half": content[: len(content) // 2], "null": b"null", "list": b"[1, {}]"}
        path.write_bytes({**texts, "deep": b"[" * 100_000}.get(kind, rng.randbytes(200)))


@pytest.mark.parametrize("seed", range(CASES))
def test_a_mutated_file_is_one_line_or_does_no_harm(seed, home, capsys):
    rng = random.Random(seed)
    mutate(home / "run" / FILES[seed % len(FILES)], rng)
    told(capsys, rng.choice(USES))


@pytest.mark.parametrize("size", [10**12, 2**31, 0, -1, "x", None, 1.5])
def test_a_vocabulary_that_cannot_be_is_refused_before_memory_is_asked_for(size, home, capsys):
    path = home / "run" / "data.json"
    record = json.loads(path.read_text())
    record["sizes"]["vocab_size"] = size
    path.write_text(json.dumps(record))
    assert str(home / "run") in str(told(capsys, GENERATE))


SIZES = [("model.num_layers", 10**6), ("model.num_layers", 9_999), ("model.dim", 10**9), ("model.dim", 10**30)]
SIZES += [("model.ffn_dim", 10**9), ("model.num_heads", 2**60), ("model.head_dim", 10**12)]
SIZES += [("model.vocab_size", 10**9), ("model.vocab_size", 2**62)]


@pytest.mark.parametrize("key, size", SIZES)
def test_a_config_of_a_model_that_cannot_be_is_refused_before_memory_is_asked_for(key, size, home, capsys):
    """`load_trained` is what generate, eval, export, predict and --adapter read a run by."""
    path = home / "run" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    group, name = key.split(".")
    config[group][name] = size
    path.write_text(yaml.safe_dump(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError):
        load_trained("run")
    start = ["train", *TINY[2:], "trainer.max_steps=1", "init_from=run"]
    assert told(capsys, RESUME if SIZES.index((key, size)) % 2 else start)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


def test_what_is_no_checkpoint_by_its_name_is_none(home, capsys):
    checkpoints = home / "run" / "checkpoints"
    for name in ("step_abc.ckpt", "step_.ckpt", "step_-1.ckpt", "step_1.5.ckpt"):
        (checkpoints / name).mkdir()
    (checkpoints / "step_00000009.ckpt").symlink_to("step_00000009.ckpt")
    assert [path.name for path in list_checkpoints(checkpoints)] == ["step_00000009.ckpt", "step_00000002.ckpt"]
    assert find_checkpoint(home / "run") == Path(home / "run" / "checkpoints" / "step_00000002.ckpt")
    assert "step_abc.ckpt cannot be read" in str(told(capsys, ["eval", "run/checkpoints/step_abc.ckpt"]))


@pytest.mark.parametrize("content", [b"", b"cos\nsystem\n(S'touch ran'\ntR.", b"PK\3\4"])
def test_a_state_with_the_right_checksum_that_is_no_state_runs_nothing(content, home, capsys):
    folder = home / "run" / "checkpoints" / "step_00000002.ckpt"
    (folder / STATE).write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    part = Part.of(folder / STATE)
    manifest["files"] = [vars(part) if file["name"] == STATE else file for file in manifest["files"]]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert damage(folder) is None
    assert f"{STATE} cannot be read" in str(told(capsys, GENERATE))
    assert not (home / "ran").exists()


def test_a_manifest_names_files_of_its_own_folder_only(home):
    folder = home / "run" / "checkpoints" / "step_00000002.ckpt"
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][0]["name"] = "../../config.yaml"
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert str(damage(folder)).startswith(f"{MANIFEST}: files.0.name: ")


def test_rows_that_cannot_be_read_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n[1]\nnull\n{}\n\xff\n{"step": "x"}\n{"step": 2}\n')
    assert Rows(path).read() == [{"step": 1}, {"step": 2}]
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        Rows(path).read()


@pytest.mark.parametrize("content", ["null", "{}", "[1]", '[{"overrides": []}]', "[" * 100_000, '[{"state": "x"}]'])
def test_the_jobs_of_a_sweep_are_read_by_their_schema(content, tmp_path):
    (tmp_path / "jobs.json").write_text(content)
    with pytest.raises(UserError, match=r"jobs.json cannot be read .*: name another hydra.sweep.dir"):
        Sweep(tmp_path)


UNREADABLE = ["config.yaml", "data.json", *(f"checkpoints/step_00000002.ckpt/{name}" for name in (MANIFEST, STATE))]


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("use", [GENERATE, RESUME], ids=["generate", "resume"])
def test_a_file_that_may_not_be_read_is_named(name, use, home, capsys, monkeypatch):
    """Opening it fails, as it does for a user whom its mode keeps out; no mode keeps out root."""
    path = home / "run" / name

    def refuse(function):
        def reading(file, *args, **kwargs):
            if not isinstance(file, int) and Path(os.fsdecode(file)).resolve() == path:
                raise PermissionError(13, "Permission denied", str(file))
            return function(file, *args, **kwargs)

        return reading

    for place in ((builtins, "open"), (io, "open"), (os, "open")):
        monkeypatch.setattr(*place, refuse(getattr(*place)))
    line = str(told(capsys, use))
    assert path.name in line and "ermission denied" in line
