"""docs/adding-an-option.md is true: its files, added to a copy of the project, make options that train."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-an-option.md").read_text()
FILES = dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL))
OPTIONS = ["encoding=log_distance", "norm=layer_scale", "ffn=squared_relu"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the page's files, and those only, added."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("txtrain", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    return folder


# One process, since each of its own would import PyTorch anew.
CHECK = """
import sys
from txtrain.cli import main
for override in sys.argv[1:]:
    assert main(["train", *OPTIONS, override, "dry_run=true"]) == 1
"""


def run(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([sys.executable, *words], cwd=project, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result


def test_each_option_is_one_python_file_and_one_yaml_file() -> None:
    python = {name for name in FILES if name.endswith(".py")}
    yaml = {name for name in FILES if name.endswith(".yaml")}
    assert {f"{Path(name).parent.name}={Path(name).stem}" for name in yaml} == set(OPTIONS)
    assert {Path(name).stem for name in python} == {Path(name).stem for name in yaml}
    assert len(python) == len(yaml) == 3


def test_the_options_of_the_page_train_together(project: Path) -> None:
    sizes = ["model.dim=32", "model.num_heads=2", "model.num_layers=2", "data.seq_len=32", "data.batch_size=8"]
    text = [
        "tokenizer=byte",
        "data=text",
        f"data.path={ROOT / 'tests/golden/text.txt'}",
        f"data.cache_dir={project}/cache",
    ]
    steps = ["trainer.max_steps=20", "trainer.log_every_n_steps=1", "optimizer.lr=0.01", "trainer.accelerator=cpu"]
    more = ["logger=none", f"run_dir={project}/run", "encoding.strength=0.5"]
    run(project, "-m", "txtrain", "train", *OPTIONS, *sizes, *text, *steps, *more)
    lines = [json.loads(line) for line in (project / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.5


MISTAKES = {
    "encoding.strenth=2": "encoding.strength",
    "encoding.strength=strong": "encoding.strength",
    "encoding.strength=-1": "give a positive number",
    "norm.layer=batchnorm": "layernorm",
}


@pytest.fixture(scope="module")
def told(project: Path) -> dict[str, str]:
    """The one line about each mistake."""
    result = run(project, "-c", CHECK.replace("OPTIONS", repr(OPTIONS)), *MISTAKES)
    return dict(zip(MISTAKES, result.stderr.splitlines(), strict=True))


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_in_their_values_is_one_line(told: dict[str, str], override: str) -> None:
    assert MISTAKES[override] in told[override]
