"""Repeats the two Shakespeare experiments and writes their table into docs/experiments.md.

    python scripts/shakespeare.py tinyshakespeare.txt [--nanogpt FOLDER]

FOLDER is a clone of nanoGPT whose data/shakespeare_char is prepared; its CPU recipe is then timed in the same run.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "experiments.md"
MARK = "<!-- table -->\n"

# The command in nanoGPT's README for a machine without a GPU, and the learning rates of its recipe's comments.
NANOGPT = (
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --log_interval=100 "
    "--block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 "
    "--dropout=0.0"
)


def run(experiment: str, text: Path) -> list[str]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"experiment={experiment}", f"data.path={text}", f"run_dir={folder}/run", "logger=none"]
        started = time.monotonic()
        subprocess.run([sys.executable, ROOT / "train.py", *overrides], check=True)
        seconds = time.monotonic() - started
        outcome = json.loads((Path(folder) / "run" / "summary.json").read_text())
    return [
        f"`{experiment}`",
        f"{outcome['parameters']:,}",
        f"{outcome['tokens']:,}",
        f"{outcome['validation_loss']:.3f}",
        f"{seconds:.0f}",
    ]


def run_nanogpt(folder: Path) -> list[str]:
    """The peer's row; its validation loss is a mean over 20 random batches."""
    started = time.monotonic()
    command = [sys.executable, *NANOGPT.split()]
    printed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    seconds = time.monotonic() - started
    losses = re.findall(r"step 2000: .*val loss ([0-9.]+)", printed)
    return ["nanoGPT", "804,096", "1,536,000", losses[-1][:5], f"{seconds:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--nanogpt", type=Path)
    arguments = parser.parse_args()
    rows = [run(experiment, arguments.text.resolve()) for experiment in ("shakespeare_char", "shakespeare_char_best")]
    if arguments.nanogpt:
        rows.insert(0, run_nanogpt(arguments.nanogpt))
    head = ["run", "parameters", "tokens", "validation loss", "seconds, all in all"]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    before, _, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(before + MARK + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
