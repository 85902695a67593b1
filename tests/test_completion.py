"""Completion in a real bash, by the script that the command installs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from txtrain.cli import main

ROOT = Path(__file__).parents[1]
# What bash does at TAB: the words of the line, the last of them empty after a space.
ASK = """\
line="$1"; COMP_LINE="$line"; COMP_POINT=${#line}; read -ra COMP_WORDS <<< "$line"
[[ "$line" == *" " ]] && COMP_WORDS+=(""); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
hydra_bash_completion; echo "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Answers of bash to a line, with the completion of a program installed."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "txtrain").write_text(
        f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(ROOT)!r}); from txtrain.cli import start; start()\n"
    )
    (folder / "txtrain").chmod(0o755)
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def ask(install, line):
        command = ["bash", "-c", f'eval "$({install} -sc install=bash)"\n{ASK}', "bash", line]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PATH": path}, cwd=ROOT)
        assert not done.stderr
        return done.stdout.split()

    return ask


def test_the_installed_command_completes_options(shell):
    assert shell("txtrain train", "txtrain train norm=p") == ["norm=parallel", "norm=post", "norm=pre"]


def test_the_clone_completes_options(shell):
    assert shell("python train.py", "python train.py lora.ra") == ["lora.rank=", "lora.rank_pattern="]


@pytest.mark.parametrize(
    "line, words", [("txtrain ev", ["eval"]), ("txtrain train norm=pre see", ["seed="]), ("", None)]
)
def test_what_the_script_asks_for(line, words, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    found = capsys.readouterr().out.split()
    assert found == words if words else "generate" in found


@pytest.mark.parametrize("line", ["txtrain eval runs/", "txtrain predict runs/x file.t"])
def test_files_are_left_to_the_shell(line, monkeypatch, capsys):
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out == ""
