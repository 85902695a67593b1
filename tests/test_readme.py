"""Every command of the README runs, or needs a fresh clone, GPUs or Docker and is checked as far as it can be."""

import itertools
import os
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests import forked
from txtrain.compose import compose
from txtrain.config import check, config_directory, groups, options, to_plain

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition(" #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]
GPUS = [command for command in COMMANDS if command.startswith("python") and "trainer.devices=8" in command]
FRESH = [command for command in COMMANDS if command.startswith(("make ", "git ", "cd ", "source ", "pip install"))]
DOCKER = [command for command in COMMANDS if command.startswith("docker ")]
RUN = [command for command in COMMANDS if command not in (*GPUS, *FRESH, *DOCKER)]
SWEEPS = [command for command in RUN if " -m " in command]

SMALL = ["model.dim=32", "model.num_layers=1", "data.seq_len=32", "data.batch_size=4", "tokenizer=byte"]
SHORT = ["trainer.max_steps=2", "trainer.limit_val_batches=1", "samples.length=4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a user types: train.py and README.md are there."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("train.py", "README.md", "txtrain", "conf", "hydra_plugins"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def run(command: str, folder: Path, cache: Path) -> str:
    words = shlex.split(command)
    assert words[0] in ("python", "txtrain"), command
    if words[1] in ("generate", "eval"):
        if not (folder / words[2]).exists():
            run("python train.py", folder, cache)
        words += ["--max-new-tokens=8", "--device=cpu"] if words[1] == "generate" else ["trainer.limit_val_batches=1"]
    elif "--help" not in words:
        resumes = any(word.startswith("resume=") for word in words)
        words += ["trainer.max_steps=4"] if resumes else SMALL + SHORT
    start = [sys.executable, words[1]] if words[0] == "python" else [sys.executable, "-m", "txtrain", words[1]]
    environment = os.environ | {"TXTRAIN_CACHE": str(cache), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    done = forked.run([*start, *words[2:]], cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_the_readme_has_commands_of_each_kind():
    assert len(RUN) >= 5
    assert GPUS
    assert FRESH
    assert DOCKER


def of_two_jobs(sweep: str) -> str:
    """Its first list of values cut to two, the others to one."""
    most, words = 2, []
    for key, equals, values in (word.partition("=") for word in shlex.split(sweep)):
        words.append(key + equals + ",".join(values.split(",")[:most]))
        most = 1 if "," in values else most
    return shlex.join(words)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_each_job_of_a_sweep_composes(sweep):
    lists = [
        [f"{key}={value}" for value in values.split(",")]
        for key, _, values in (word.partition("=") for word in shlex.split(sweep)[2:] if word != "-m")
    ]
    for overrides in itertools.product(*lists):
        check(to_plain(compose(overrides).config))


@pytest.mark.parametrize(
    "command",
    [
        *(command for command in RUN if command not in SWEEPS),
        *map(of_two_jobs, SWEEPS),
        *(pytest.param(sweep, marks=pytest.mark.heavy) for sweep in SWEEPS),
    ],
)
def test_command_runs(command, folder, tmp_path_factory):
    printed = run(command, folder, tmp_path_factory.getbasetemp() / "cache")
    told = {"generate": "", "eval": "bits per byte"}.get(command.split()[1], "validation loss")
    assert "--help" in command or (told in printed and printed)


@pytest.mark.parametrize("command", GPUS)
def test_command_for_many_gpus_composes(command):
    check(to_plain(compose(shlex.split(command)[2:]).config))


@pytest.mark.parametrize("command", FRESH)
def test_command_for_a_fresh_clone_names_what_exists(command):
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for word in words[2:]:
        if word.startswith("ARGS="):
            check(to_plain(compose(word.removeprefix("ARGS=").split()).config))


def test_the_docker_line_is_the_one_in_its_page():
    page = (ROOT / "docs" / "docker.md").read_text().replace("\\\n", " ")
    for command in DOCKER:
        assert " ".join(command.split()) in " ".join(page.split())


def test_the_table_of_groups_is_complete():
    directory = config_directory()
    table = README.partition("## The axes")[2].partition("\n## ")[0]
    for group in groups(directory):
        assert f"`{group}`" in table, group
        for option in options(directory, group):
            assert f"`{option}`" in table, f"{group}={option}"


def test_the_tree_has_a_line_for_each_file():
    tree = re.search(r"## The files\n.*?```text\n(.*?)```", README, flags=re.DOTALL)[1]
    for file in [*ROOT.glob("txtrain/**/*.py"), *ROOT.glob("scripts/*"), *ROOT.glob("hydra_plugins/*/*.py")]:
        if file.name != "__init__.py" and "__pycache__" not in file.parts and file.is_file():
            assert file.name in tree, file


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link
