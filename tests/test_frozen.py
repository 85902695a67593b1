"""Runs of an earlier version are evaluated, exported and resumed, with the numbers that it had."""

import json
import os
import sys
from pathlib import Path

import pytest

from scripts.freeze import (
    EXPECTED,
    MORE,
    ROOT,
    STEPS,
    copied,
    evaluated,
    losses,
    trained_runs,
    txtrain,
    unpack,
    written,
)
from tests import forked

FOUND = json.loads(EXPECTED.read_text())
# Training in bfloat16 rounds differently on processors with other instructions.
TOLERANCE = {name: 2e-3 for name in FOUND if "bf16" in name}
TWO_RANKS = "zero2"

# The words of the line by which a resumed run says that its numbers are no longer those of the earlier version.
CHANGED = {
    "sandwich": "now drop a branch after its outer norm",
    "bf16_true": "moments go on in float32",
    "muon_bf16_true": "moments go on in float32",
    "lora_bf16_true": "moments go on in float32",
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("frozen").resolve())


@pytest.fixture(autouse=True)
def _there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)


@pytest.mark.parametrize("name", FOUND)
def test_a_frozen_run_is_evaluated(folder: Path, name: str) -> None:
    run = trained_runs(folder)[name]
    found, wanted = evaluated(run), FOUND[name]["evaluated"]
    assert wanted is None or found == pytest.approx(wanted, rel=TOLERANCE.get(name, 1e-5))


@pytest.mark.parametrize("name", [name for name, found in FOUND.items() if found["written"]])
def test_a_frozen_run_writes_the_same_text(folder: Path, name: str) -> None:
    assert written(trained_runs(folder)[name]) == FOUND[name]["written"]


@pytest.mark.parametrize("name", FOUND)
def test_a_frozen_run_is_exported(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Or refused in one line, as it was."""
    if FOUND[name]["exported"] is None:
        pytest.skip("the earlier version ended in a traceback")
    run = trained_runs(folder)[name]
    code, printed = txtrain("export", str(run), str(run.with_name(f"{run.name}-exported")))
    if FOUND[name]["exported"]:
        assert code == 0 and "MB" in printed
    elif code:
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")


@pytest.mark.parametrize("name", FOUND)
def test_a_frozen_run_goes_on(folder: Path, name: str) -> None:
    """With the losses of the earlier version, or a line that says why they are others."""
    run = copied(trained_runs(folder)[name])
    command = [f"resume={run}", f"trainer.max_steps={STEPS + MORE}"]
    if name == TWO_RANKS:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = forked.run([sys.executable, ROOT / "train.py", *command], cwd=folder, env=environment, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert txtrain("train", *command)[0] == 0
    if name in CHANGED:
        lines = [line for line in (run / "train.log").read_text().splitlines() if CHANGED[name] in line]
        assert len(lines) == 1, lines
        assert len(losses(run)) == MORE
    else:
        assert losses(run) == pytest.approx(FOUND[name]["losses"], rel=TOLERANCE.get(name, 1e-5))
