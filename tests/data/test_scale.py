"""Text of any size and kind is prepared in the same memory."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "scale.py"
MOST = 600  # MB above the bare process


def peaks(folder: Path, size: int, *options: str) -> tuple[int, int]:
    """MB that preparing so many MB takes: in all, and above the bare process."""
    command = [sys.executable, str(SCRIPT), "--size", f"{size}MB", "--steps", "0", "--folder", str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"prepared: (\d+) MB in all, (\d+) MB above", done.stdout)
    return int(found[1]), int(found[2])


def check(folder: Path, *options: str) -> None:
    one, three = (peaks(folder / str(size), size, *options) for size in (100, 300))
    assert max(one[1], three[1]) <= MOST
    assert three[0] == pytest.approx(one[0], rel=0.1)


def test_three_times_the_text_takes_the_same_memory(tmp_path):
    check(tmp_path, "--kind", "txt", "--lines", "one", "--tokenizer", "byte")


@pytest.mark.heavy
@pytest.mark.parametrize("tokenizer", ["bpe", "byte"])
@pytest.mark.parametrize("lines", ["many", "one"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "parquet"])
def test_every_kind(tmp_path, kind, lines, tokenizer):
    check(tmp_path, "--kind", kind, "--lines", lines, "--tokenizer", tokenizer)


@pytest.mark.heavy
def test_many_files(tmp_path):
    check(tmp_path, "--kind", "txt", "--files", "20000", "--tokenizer", "bpe")
