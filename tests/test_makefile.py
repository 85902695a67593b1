"""The two commands of a fresh clone, with a stand-in for Python that writes down what it is asked to do."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FAKE_PYTHON = """#!/bin/sh
echo "$*" >> calls.txt
case "$*" in
*version_info*) echo {version} ;;
*ensurepip*) exit {without_venv} ;;
"-m venv --clear .venv") rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
"-m pip install"*) test ! -e interrupted ;;
"-m pytest"*) test ! -e no-tests || exit 5 ;;
esac
"""


def fake_python(path: Path, version: str, without_venv: int = 0) -> None:
    path.write_text(FAKE_PYTHON.format(version=version, without_venv=without_venv))
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What make reads, in a folder of its own, with a Python 3.12 named ./python."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("scripts", ".ci"):
        shutil.copytree(ROOT / name, tmp_path / name)
    fake_python(tmp_path / "python", "3.12.1")
    return tmp_path


def run(clone: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=clone, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})


def calls(clone: Path, but: str = "-c ") -> list[str]:
    """What the stand-in was asked since the last call of this, without the check of its version."""
    log = clone / "calls.txt"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [line for line in lines if not line.startswith((but, "-m pip config"))]


INSTALL = ["-m venv --clear .venv", "-m pip install -qq --editable .[dev]"]


def test_help_lists_every_target(clone: Path) -> None:
    listed = re.findall(r"^make ([\w-]+) ", run(clone, "make").stdout, flags=re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(phony[1].split())
    assert {"train", "test"} <= set(listed)


def test_a_fresh_clone_is_set_up_once_and_trains_with_overrides(clone: Path) -> None:
    assert run(clone, "make", "train", "PYTHON=./python", "ARGS=norm=post lora.rank=8").returncode == 0
    assert calls(clone) == [*INSTALL, "train.py norm=post lora.rank=8"]
    assert run(clone, "make", "train", "PYTHON=./python").returncode == 0
    assert calls(clone) == ["train.py"]
    assert run(clone, "make", "test", "PYTHON=./python").returncode == 0
    [test] = calls(clone)
    assert test.startswith("-m pytest -n 2")


def test_an_interrupted_install_is_started_again(clone: Path) -> None:
    (clone / "interrupted").touch()
    assert run(clone, "make", "train", "PYTHON=./python").returncode != 0
    assert calls(clone) == INSTALL
    (clone / "interrupted").unlink()
    assert run(clone, "make", "train", "PYTHON=./python").returncode == 0
    assert calls(clone) == [*INSTALL, "train.py"]


def test_a_new_lock_is_installed(clone: Path) -> None:
    run(clone, "make", "setup", "PYTHON=./python")
    calls(clone)
    stamp = clone / ".venv" / ".installed"
    lock = clone / "constraints.txt"
    newer = stamp.stat().st_mtime + 10
    os.utime(lock, (newer, newer))
    run(clone, "make", "setup", "PYTHON=./python")
    assert calls(clone) == INSTALL[1:]


@pytest.mark.parametrize("version", ["2.7.18", "3.6.15", "3.10.13", "3.14.0"])
def test_a_wrong_python_is_told_in_one_line(clone: Path, version: str) -> None:
    fake_python(clone / "python", version)
    before = sorted(path.name for path in clone.iterdir())
    result = run(clone, "make", "train", "PYTHON=./python")
    assert result.returncode != 0
    [line] = (result.stdout + result.stderr).splitlines()
    assert f"needs Python 3.11 to 3.13, got {version} (./python): install one, or name one: make setup PYTHON=" in line
    assert sorted(path.name for path in clone.iterdir() if path.name != "calls.txt") == before


def test_a_python_without_venv_is_told_in_one_line(clone: Path) -> None:
    fake_python(clone / "python", "3.11.2", without_venv=1)
    result = run(clone, "make", "train", "PYTHON=./python")
    [line] = (result.stdout + result.stderr).splitlines()
    assert "got 3.11.2 (./python) without its venv module" in line
    assert "python3.11-venv" in line


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        ({"python3": "3.13.0", "python3.11": "3.11.7"}, "python3"),
        ({"python3": "3.10.13", "python3.12": "3.12.1"}, "python3.12"),
        ({"python3": "3.14.0", "python3.13": "3.13.1", "python3.11": "3.11.7"}, "python3.13"),
        ({"python3.11": "3.11.7"}, "python3.11"),
        ({"python3": "3.10.13"}, None),
        ({}, None),
    ],
)
def test_the_python_on_path_is_found(clone: Path, versions: dict[str, str], chosen: str | None) -> None:
    folder = clone / "bin"
    folder.mkdir()
    for name, version in versions.items():
        fake_python(folder / name, version)
    environment = {"PATH": str(folder)}
    command = ["/bin/sh", "scripts/find_python.sh"]
    result = subprocess.run(command, cwd=clone, capture_output=True, text=True, env=environment)
    assert result.returncode == (0 if chosen else 1)
    [line] = result.stdout.splitlines()
    assert line == chosen if chosen else line.startswith("error: txtrain needs Python 3.11 to 3.13, got ")


def test_ci_lints_and_tests_and_fails_where_no_test_ran(clone: Path) -> None:
    run(clone, "make", "setup", "PYTHON=./python")
    calls(clone)
    assert run(clone, "bash", ".ci/run").returncode == 0
    commands = [" ".join(line.split()[:3]) for line in calls(clone)]
    assert commands == ["-m ruff check", "-m ruff format", "-m mypy", "-m pytest -n"]
    (clone / "no-tests").touch()
    assert run(clone, "bash", ".ci/run").returncode != 0
