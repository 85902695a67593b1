"""Writes tests/golden/losses.json anew: 20 seeded steps of five recipes on one CPU thread.

    python scripts/golden.py

Only for a change that is meant to change the numbers; say in its commit why.
"""

import json
import tempfile
from pathlib import Path

import hydra
import torch
import yaml

from txtrain.config import config_directory
from txtrain.train import train

GOLDEN = Path(__file__).parent.parent / "tests" / "golden"
COMMON = [
    "data=text",
    f"data.path={GOLDEN / 'text.txt'}",
    "data.seq_len=64",
    "data.batch_size=8",
    "tokenizer=byte",
    "model.dim=64",
    "model.num_layers=2",
    "logger=none",
    "trainer.accelerator=cpu",
    "trainer.max_steps=20",
    "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=1",
]


def recipes() -> dict[str, list[str]]:
    """Overrides by name."""
    text = (GOLDEN / "recipes.yaml").read_text()
    return {name: " ".join(lines).split() for name, lines in yaml.safe_load(text).items()}


def run(overrides: list[str], folder: Path) -> list[float]:
    """The loss of each step."""
    typed = [*COMMON, *overrides, f"run_dir={folder / 'run'}", f"data.cache_dir={folder / 'cache'}"]
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = hydra.compose("train", overrides=typed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(config, typed)
    finally:
        torch.set_num_threads(threads)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def main() -> None:
    losses = {}
    for name, overrides in recipes().items():
        with tempfile.TemporaryDirectory() as folder:
            losses[name] = run(overrides, Path(folder))
    (GOLDEN / "losses.json").write_text(json.dumps(losses, indent=1) + "\n")


if __name__ == "__main__":
    main()
