"""Small data and runs for the tasks on text."""

import json
import random
from pathlib import Path

TEXT = Path(__file__).parents[1] / "golden" / "text.txt"
TINY = ["logger=none", "trainer.accelerator=cpu", "model.dim=32", "model.num_layers=1", "tokenizer.vocab_size=400"]
# The third one cuts up no weight of a small model unless it is told to.
ZERO = ["deepspeed_zero1", "deepspeed_zero2"]
ZERO += ["deepspeed_zero3 strategy.zero_optimization.stage3_param_persistence_threshold=0"]
LABELS = {"bad": "awful", "good": "lovely", "neutral": "so"}


def write_labelled(path, rows=150, pairs=False):
    """Sentences with a word that tells the label; of pairs it is in the second."""
    draw = random.Random(0)
    words = sorted({word for word in TEXT.read_text().split() if word.isalpha()})[:200]
    lines = []
    for number in range(rows):
        label = sorted(LABELS)[number % 3]
        first, second = ([draw.choice(words) for _ in range(draw.randint(2, 14))] for _ in range(2))
        (second if pairs else first).insert(1, LABELS[label])
        row = {"text": " ".join(first), "label": label} | ({"second": " ".join(second)} if pairs else {})
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_tagged(path, rows=100):
    """Words with a capital are entities, and neighbours are one."""
    draw = random.Random(0)
    words = sorted({word for word in TEXT.read_text().split() if word.isalpha()})
    lines = []
    for _ in range(rows):
        chosen = [draw.choice(words) for _ in range(draw.randint(2, 40))]
        tags = ["O"] * len(chosen)
        for place, word in enumerate(chosen):
            if word[0].isupper():
                tags[place] = "I-NAME" if place and tags[place - 1] != "O" else "B-NAME"
        lines.append(json.dumps({"tokens": chosen, "tags": tags}))
    path.write_text("\n".join(lines) + "\n")
    return path


def read_lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def validations(run):
    """What the run's validations said, by step."""
    rows = [row for row in read_lines(Path(run) / "metrics.jsonl") if "validation/loss" in row]
    return [
        {name.removeprefix("validation/"): value for name, value in row.items() if name.startswith("validation/")}
        for row in rows
    ]
