"""Trains the default job in float32, bf16-mixed and bf16-true, and writes the table into docs/optimizers.md.

python -m scripts.half FOLDER

Losses that are in FOLDER already are not measured again, so a script that was stopped goes on. In about an hour on two
cores.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "optimizers.md"
MARK = "<!-- half -->\n"
OPTIMIZERS, PRECISIONS, SEEDS = ("adamw", "muon", "sgd"), ("32", "bf16-mixed", "bf16-true"), (0, 1, 2)
SETTINGS = ["trainer.max_steps=200", "trainer.val_check_interval=200", "trainer.accelerator=cpu", "logger=none"]


def loss(folder: Path, optimizer: str, precision: str, seed: int) -> float:
    """Of validation, at the end of a run."""
    run = folder / f"{optimizer}_{precision}_{seed}"
    if not (run / "summary.json").exists():
        typed = [f"optimizer={optimizer}", f"trainer.precision={precision}", f"seed={seed}", f"run_dir={run}"]
        environment = os.environ | {"TXTRAIN_CACHE": str(folder / "cache")}
        subprocess.run([sys.executable, ROOT / "train.py", *SETTINGS, *typed], env=environment, check=True)
    return json.loads((run / "summary.json").read_text())["validation_loss"]


def table(folder: Path) -> list[str]:
    """A row for each optimizer and precision: losses of each seed, their mean, and how far it is from float32's."""
    rows = [["optimizer", "`trainer.precision`", "losses", "mean", "less float32's"], ["---"] * 5]
    for optimizer in OPTIMIZERS:
        full = [loss(folder, optimizer, "32", seed) for seed in SEEDS]
        for precision in PRECISIONS:
            found = [loss(folder, optimizer, precision, seed) for seed in SEEDS]
            told = f"{mean(found) - mean(full):+.4f}" if precision != "32" else ""
            losses = ", ".join(f"{value:.4f}" for value in found)
            rows.append([f"`{optimizer}`", f"`{precision}`", losses, f"{mean(found):.4f}", told])
    return ["| " + " | ".join(row) + " |\n" for row in rows]


def main() -> None:
    before, mark, rest = PAGE.read_text().partition(MARK)
    _, _, after = rest.partition("\n\n")
    PAGE.write_text(before + mark + "".join(table(Path(sys.argv[1]))) + "\n" + after)


if __name__ == "__main__":
    main()
