"""docs/adding-an-option.md is true: its files, added to a copy of the project, make options that train."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding-an-option.md").read_text()
FILES = dict(re.findall(r"^`([\w/.]+)`\n\n```\w+\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL))

TRAIN = """
import sys
import hydra, torch
from txtrain.config import check, config_directory, to_plain
from txtrain.model import Decoder
from txtrain.model.shape import Shape
from txtrain.train import build, model_axes

with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
    config = hydra.compose("train", overrides=sys.argv[1:])
check(to_plain(config))
torch.manual_seed(0)
model = Decoder(vocab_size=16, max_len=8, shape=build(config, "model"), **model_axes(config))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
tokens = torch.arange(8).repeat(2, 1)
for step in range(8):
    loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item())
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the page's files, and those only, added."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("txtrain", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in FILES.items():
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    (folder / "steps.py").write_text(TRAIN)
    return folder


def steps(project: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "steps.py", "model.dim=16", "model.num_heads=2", "model.num_layers=2", *overrides]
    return subprocess.run(command, cwd=project, capture_output=True, text=True)


def test_each_option_is_one_python_file_and_one_yaml_file() -> None:
    python = {name for name in FILES if name.endswith(".py")}
    yaml = {name for name in FILES if name.endswith(".yaml")}
    assert {Path(name).parent.name for name in yaml} == {"encoding", "norm", "ffn"}
    assert {Path(name).stem for name in python} == {Path(name).stem for name in yaml}
    assert len(python) == len(yaml) == 3


def test_the_options_of_the_page_train_together(project: Path) -> None:
    result = steps(project, "encoding=log_distance", "norm=layer_scale", "ffn=squared_relu", "encoding.strength=0.5")
    assert result.returncode == 0, result.stderr
    losses = [float(line) for line in result.stdout.split()]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("encoding.strenth=2", "encoding.strength"),
        ("encoding.strength=strong", "encoding.strength"),
        ("encoding.strength=-1", "give a positive number"),
        ("norm.layer=batchnorm", "layernorm"),
    ],
)
def test_a_mistake_in_their_values_is_one_line(project: Path, override: str, said: str) -> None:
    command = [
        sys.executable,
        "-m",
        "txtrain",
        "train",
        "encoding=log_distance",
        "norm=layer_scale",
        override,
        "dry_run=true",
    ]
    result = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert said in line
