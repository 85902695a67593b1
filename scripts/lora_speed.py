"""Times LoRA fine-tuning against PEFT under transformers' Trainer, the same work in turns; writes docs/lora.md's table.

python scripts/lora_speed.py [--rounds 3] [--threads 2]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "lora.md"
MARK = "<!-- speed -->\n"
HEAD = ["adapters", "PEFT + Trainer", "txtrain", "speed", "peak memory", "of theirs", "first loss"]
SIZES = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 8}
TARGETS = {
    "rank 8 on q, v": ["q_proj", "v_proj"],
    "rank 8 on all seven": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
BATCH, LENGTH, STEPS, RATE = 8, 256, 24, 1e-3


def write_folder(folder: Path) -> None:
    """A Llama with random weights, as both read it."""
    import transformers

    from txtrain.data.tokenizer import Byte

    torch.manual_seed(0)
    sizes: dict[str, Any] = SIZES
    config = transformers.LlamaConfig(**sizes, num_key_value_heads=8, vocab_size=8192, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Byte()
    tokenizer.fit()
    tokenizer.save(folder / "tokenizer.json")


def overrides(folder: Path, targets: list[str], run_dir: Path) -> list[str]:
    """Of our run: nothing is validated or sampled before its end, and only its last step is logged."""
    return [
        f"init_from={folder}",
        "lora.rank=8",
        "lora.alpha=16",
        f"lora.targets=[{','.join(targets)}]",
        f"data.seq_len={LENGTH}",
        f"data.batch_size={BATCH}",
        f"trainer.max_steps={STEPS}",
        "trainer.limit_val_batches=1",
        "trainer.log_every_n_steps=1",
        "schedule=constant",
        "schedule.warmup=0",
        f"optimizer.lr={RATE}",
        "samples.length=0",
        "logger=none",
        f"run_dir={run_dir}",
    ]


def our_batches(folder: Path) -> Iterable[dict[str, torch.Tensor]]:
    """What our run trains on, in its order."""
    import hydra
    from hydra.utils import instantiate

    from txtrain.config import config_directory
    from txtrain.data.loader import StepLoader
    from txtrain.data.tokenizer import Pretrained

    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        config = hydra.compose("train", overrides=[f"data.seq_len={LENGTH}", f"data.batch_size={BATCH}"])
    data = instantiate(config.data, _convert_="all")(tokenizer=Pretrained(path=str(folder)), seed=config.seed)
    data.prepare()
    samples = data.samples("train")
    return StepLoader(samples, order=data.order(samples, seed=config.seed), micro=BATCH, accumulation=1)


def train_theirs(folder: Path, targets: list[str], found: Path) -> None:
    """PEFT under the Trainer on the same batches."""
    import peft
    import transformers

    batches = [batch for _, batch in zip(range(STEPS), our_batches(folder), strict=False)]
    # The Trainer's models shift labels by themselves: a row is the inputs and the last target.
    rows = torch.cat([torch.cat([batch["tokens"], batch["targets"][:, -1:]], dim=1) for batch in batches])
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.config.use_cache = False
    model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    times, losses = [], []

    class Told(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    class Ordered(transformers.Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(dataset)

        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            loss = super().compute_loss(*arguments, **named)
            losses.append(float((loss[0] if isinstance(loss, tuple) else loss).detach()))
            return loss

    options = transformers.TrainingArguments(
        output_dir=str(found.parent / "trainer"),
        per_device_train_batch_size=BATCH,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    dataset: Any = [{"input_ids": row, "labels": row} for row in rows]
    Ordered(model=model, args=options, train_dataset=dataset, callbacks=[Told()]).train()
    rate = (len(times) - 1) * BATCH * LENGTH / (times[-1] - times[0])
    found.write_text(json.dumps({"tokens_per_second": rate, "loss": losses[0]}))


def measured(command: list[str], threads: int) -> int:
    """Runs a command to its end; its peak memory in bytes."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return usage.ru_maxrss * 1024


def compare(folder: Path, targets: list[str], *, rounds: int, threads: int) -> list[str]:
    """The two in turns; medians."""
    ours, theirs = [], []
    for number in range(rounds):
        run_dir, found = folder / f"run-{number}-{len(targets)}", folder / "theirs.json"
        memory = measured([sys.executable, "train.py", *overrides(folder, targets, run_dir)], threads)
        summary = json.loads((run_dir / "summary.json").read_text())
        first = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0])["train/loss"]
        ours.append((summary["tokens_per_second"], memory, first))
        memory = measured([sys.executable, __file__, "--theirs", str(folder), str(found), *targets], threads)
        told = json.loads(found.read_text())
        theirs.append((told["tokens_per_second"], memory, told["loss"]))
        assert abs(first - told["loss"]) < 1e-3, f"the first losses differ: {first} and {told['loss']}"
    (rate, memory, loss), (their_rate, their_memory, their_loss) = (
        map(statistics.median, zip(*rows, strict=True)) for rows in (ours, theirs)
    )
    return [
        f"{their_rate:,.0f} tokens/s",
        f"{rate:,.0f} tokens/s",
        f"{rate / their_rate:.2f}",
        f"{memory / 2**20:,.0f} MiB",
        f"{memory / their_memory:.2f}",
        f"{loss:.4f}, {their_loss:.4f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--theirs", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.theirs:
        folder, found, *targets = options.theirs
        train_theirs(Path(folder), targets, Path(found))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder))
        our_batches(Path(folder))  # makes the tokens: neither side's memory has that in it
        for name, targets in TARGETS.items():
            rows.append([name, *compare(Path(folder), targets, rounds=options.rounds, threads=options.threads)])
            print(*rows[-1], sep="\t", flush=True)
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *rows)]
    before, _, after = PAGE.read_text().partition(MARK)
    rest = after.partition("\n\n")[2]
    PAGE.write_text(before + MARK + "\n".join(lines) + "\n\n" + rest)


if __name__ == "__main__":
    main()
