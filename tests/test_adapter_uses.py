"""Every way to train adapters with every way to use them: kinds, precisions and strategies, pairwise; all if heavy."""

import importlib.util
import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forked
from tests.pairwise import pairwise
from txtrain.cli import main

ROOT = Path(__file__).parent.parent
COMMON = ["data=text", f"data.path={ROOT / 'tests/golden/text.txt'}", "data.seq_len=16", "data.batch_size=4"]
COMMON += ["logger=none", "trainer.accelerator=cpu", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1"]
COMMON += ["samples.length=0", "optimizer.lr=1e-2"]
ONE = ["trainer.devices=1"]
MODEL = ["tokenizer=char", "model.dim=16", "model.num_layers=1", "trainer.max_steps=4"]
KINDS = {
    "lora": [],
    "dora": ["lora.variant=dora"],
    "rslora": ["lora.variant=rslora"],
    "pissa": ["lora.init=pissa"],
    "olora": ["lora.init=olora"],
    "relora": ["lora.merge_every=2"],
    "narrow": ["lora.base_dtype=bfloat16"],
    "nf4": ["lora.base_dtype=nf4"],
}
if importlib.util.find_spec("bitsandbytes") is None:
    del KINDS["nf4"]
PRECISIONS = ["32", "bf16-mixed", "bf16-true", "64"]
SHARDED = "strategy.zero_optimization.stage3_param_persistence_threshold=0"  # else weights this small stay whole
STRATEGIES = {
    "single": ["trainer.devices=1"],
    "ddp": ["strategy=ddp", "trainer.devices=2"],
    "fsdp": ["strategy=fsdp", "trainer.devices=2"],
    "zero2": ["strategy=deepspeed_zero2", "trainer.devices=2"],
    "zero3": ["strategy=deepspeed_zero3", SHARDED, "trainer.devices=2"],
}
# What the engine, the arithmetic or the merge of a rounded matrix allows between two ways to compute one loss.
TOLERANCE = {"32": 1e-5, "64": 1e-5, "bf16-mixed": 2e-2, "bf16-true": 2e-2}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a trained run, and the same model as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TXTRAIN_CACHE", str(folder / "cache"))
        assert main(["train", *COMMON, *ONE, *MODEL, f"run_dir={folder}/base"]) == 0
        assert main(["export", f"{folder}/base", f"{folder}/model"]) == 0
    return folder


@pytest.fixture
def trained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Path]:
    """A run with adapters, trained once."""
    monkeypatch.setenv("TXTRAIN_CACHE", str(folder / "cache"))

    def trained(kind: str, precision: str, strategy: str) -> Path:
        run = folder / f"{kind}_{precision}_{strategy}"
        if not run.exists():
            base = folder / ["base", "model"][(list(KINDS).index(kind) + PRECISIONS.index(precision)) % 2]
            overrides = [f"init_from={base}", "lora.rank=2", *KINDS[kind], f"trainer.precision={precision}"]
            train(*COMMON, *overrides, *STRATEGIES[strategy], "trainer.max_steps=4", f"run_dir={run}")
        return run

    return trained


def train(*words: str) -> None:
    """In this process, or several that are forked."""
    if "trainer.devices=2" not in words:
        assert main(["train", *words]) == 0
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = forked.run([sys.executable, ROOT / "train.py", *words], cwd=ROOT, env=environment, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def last_validation(run: Path) -> float:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["validation/loss"] for row in rows if "validation/loss" in row][-1]


def evaluate(run: Path, precision: str, new: Path) -> None:
    """The merged model has the loss that the run had with its adapters."""
    file = new.with_suffix(".json")
    assert main(["eval", str(run), *ONE, "trainer.accelerator=cpu", "--json", str(file)]) == 0
    check_loss(run, json.loads(file.read_text())["loss"], precision)


def generate(run: Path, precision: str, new: Path) -> None:
    assert main(["generate", str(run), "the ", "--max-new-tokens", "4", "--device", "cpu"]) == 0


def export(run: Path, precision: str, new: Path) -> None:
    assert main(["export", str(run), str(new)]) == 0
    file = new.with_suffix(".json")
    data = [*COMMON[:4], "data.validation_fraction=0.1", "trainer.limit_val_batches=1"]
    assert main(["eval", str(new), *ONE, *data, "trainer.accelerator=cpu", "--json", str(file)]) == 0
    check_loss(run, json.loads(file.read_text())["loss"], precision)


def init_from(run: Path, precision: str, new: Path) -> None:
    """A run that learns nothing has the loss of the one that it starts from."""
    still = ["optimizer=sgd", "optimizer.lr=0", "trainer.max_steps=1", "lora.rank=2"]
    train(*COMMON, *ONE, *still, f"init_from={run}", f"run_dir={new}")
    check_loss(run, last_validation(new), precision)


def resume(run: Path, precision: str, new: Path) -> None:
    go_on(run, new)


def resume_in_another_precision(run: Path, precision: str, new: Path) -> None:
    go_on(run, new, f"trainer.precision={'32' if precision == 'bf16-true' else 'bf16-true'}")


def go_on(run: Path, new: Path, *overrides: str) -> None:
    before = last_validation(run)
    shutil.copytree(run, new, symlinks=True)
    train(f"resume={new}", "trainer.max_steps=6", *ONE, "strategy=auto", *overrides)
    assert last_validation(new) == pytest.approx(before, abs=0.2)


def check_loss(run: Path, found: float, precision: str) -> None:
    tolerance = 0.05 if "nf4" in run.name else 2e-2 if "narrow" in run.name else TOLERANCE[precision]
    assert math.isfinite(found) and found == pytest.approx(last_validation(run), rel=tolerance)


USES = [evaluate, generate, export, init_from, resume, resume_in_another_precision]
ALIKE = ("rslora", "olora")  # another scale and another decomposition, on the way of lora and pissa
AXES = {"kind": [kind for kind in KINDS if kind not in ALIKE], "precision": PRECISIONS, "use": USES}
ROWS = [(row["kind"], row["precision"], "single", row["use"]) for row in pairwise(AXES)]
ROWS += [("lora", "bf16-true", "zero3", evaluate), ("lora", "bf16-true", "zero3", resume_in_another_precision)]
ALL = itertools.product(KINDS, PRECISIONS, STRATEGIES, USES)
MORE = [pytest.param(*row, marks=pytest.mark.heavy) for row in ALL if row not in ROWS]


@pytest.mark.parametrize("kind, precision, strategy, use", [*ROWS, *MORE])
def test_adapters_are_used_as_they_were_trained(
    folder: Path,
    trained: Callable[[str, str, str], Path],
    kind: str,
    precision: str,
    strategy: str,
    use: Callable[[Path, str, Path], None],
) -> None:
    run = trained(kind, precision, strategy)
    use(run, precision, folder / f"{run.name}_{use.__name__}")
