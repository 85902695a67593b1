"""trains each task's experiment on two CPU threads and writes what it reaches into docs/tasks/results.md

    python scripts/tasks.py [NAME ...]        the rows of these experiments; all of them without a name

Rows of other experiments stay as they are. A row that misses its threshold ends the script with an error.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "tasks" / "results.md"
MARK = "<!-- table -->\n"
HEAD = [
    "experiment",
    "task",
    "what is measured, on what training never sees",
    "wanted",
    "reached",
    "parameters",
    "CPU seconds",
]


@dataclass(frozen=True, kw_only=True)
class Row:
    """An experiment, and what it is to reach.

    Args:
        task: name of its task.
        measure: a number of its summary.json, and what it is in words.
        wanted: the least of it, or the most where less is better.
        less_is_better: whether it is an error rate.
        share: whether it is one, and told in percent; otherwise it is told as it is.
    """

    task: str
    measure: tuple[str, str]
    wanted: float
    less_is_better: bool = False
    share: bool = True

    def told(self, value: float) -> str:
        return f"{value:.1%}" if self.share else f"{value:.1f}"

    def reached(self, value: float) -> bool:
        return value <= self.wanted if self.less_is_better else value >= self.wanted


ROWS = {
    "vit_digits": Row(
        task="image_classification",
        measure=("accuracy", "accuracy on the fifth of scikit-learn's digits held out"),
        wanted=0.98,
    ),
    "masked_stdlib": Row(
        task="masked_lm", measure=("accuracy", "accuracy on masked tokens of 4096, files never seen"), wanted=0.45
    ),
    "speech_digits": Row(
        task="audio_classification", measure=("accuracy", "accuracy on spoken digits, voices never heard"), wanted=0.95
    ),
    "speech_strings": Row(
        task="speech_recognition",
        measure=("wer", "word error rate on strings of digits, voices never heard"),
        wanted=0.1,
        less_is_better=True,
    ),
    "translation_german": Row(
        task="translation",
        measure=("bleu", "BLEU of messages never seen, English to German; the nearest training pair's German has 17.2"),
        wanted=17.2,
        share=False,
    ),
}


def train(name: str, row: Row) -> tuple[list[str], bool]:
    """The cells of a row, and whether it is what is wanted."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "train.py", f"experiment={name}", f"run_dir={folder}/run", "logger=none"]
        environment = os.environ | {"OMP_NUM_THREADS": "2"}
        before = os.times()
        started = time.monotonic()
        subprocess.run([*command, "trainer.accelerator=cpu", "trainer.devices=1"], check=True, env=environment)
        after, minutes = os.times(), (time.monotonic() - started) / 60
        outcome = json.loads(Path(folder, "run", "summary.json").read_text())
    measure, words = row.measure
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{name}: {measure} {outcome[measure]:.4f} in {minutes:.1f} minutes, {seconds:.0f} s of CPU")
    cells = [f"`{name}`", f"`{row.task}`", words, f"{'≤' if row.less_is_better else '≥'} {row.told(row.wanted)}"]
    cells += [row.told(outcome[measure]), f"{outcome['parameters']:,}", f"{seconds:.0f}"]
    return cells, row.reached(outcome[measure])


def write(rows: dict[str, list[str]]) -> None:
    """Puts rows into the table, in the order of `ROWS`, and keeps the others that are there."""
    before, _, table = PAGE.read_text(encoding="utf-8").partition(MARK)
    lines = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    lines |= {name: _line(cells) for name, cells in rows.items()}
    ordered = [lines[name] for name in ROWS if name in lines]
    PAGE.write_text(
        before + MARK + "\n".join([_line(HEAD), _line(["---"] * len(HEAD)), *ordered]) + "\n", encoding="utf-8"
    )


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *ROWS], metavar="NAME")
    missed = []
    for name in parser.parse_args().names or ROWS:
        cells, reached = train(name, ROWS[name])
        write({name: cells})
        if not reached:
            missed.append(name)
    if missed:
        raise SystemExit(f"less than wanted: {', '.join(missed)}")


if __name__ == "__main__":
    main()
