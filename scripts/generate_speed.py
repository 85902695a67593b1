"""Times greedy generation against `transformers.generate`, the same weights in turns; writes docs/generate.md's table.

python scripts/generate_speed.py [--rounds 5] [--threads 1]
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from txtrain.data.tokenizer import Byte
from txtrain.generate.sampling import Sampling
from txtrain.generate.writer import Writer
from txtrain.trained import Trained, load_trained

PAGE = Path(__file__).parent.parent / "docs" / "generate.md"
MARK = "<!-- table -->\n"
HEAD = ["model", "batch", "transformers", "txtrain", "ratio"]
PROMPT, NEW = 32, 64
SMOLLM2 = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4}
MODELS = {
    "4 layers of 128, vocabulary 1,000": SMALL | {"intermediate_size": 384, "vocab_size": 1000},
    "SmolLM2-135M's shape": SMOLLM2 | {"intermediate_size": 1536, "vocab_size": 49152},
}


def new_pair(folder: Path, sizes: dict[str, int]) -> tuple[transformers.PreTrainedModel, Trained]:
    """A Llama of these sizes with random weights, as both read it from one folder."""
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=True, max_position_embeddings=2048)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Byte()
    tokenizer.fit()
    tokenizer.save(folder / "tokenizer.json")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return theirs, replace(load_trained(folder), end_tokens=frozenset())


def time_theirs(model: transformers.PreTrainedModel, prompts: torch.Tensor) -> tuple[float, list[list[int]]]:
    began = time.perf_counter()
    found = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return time.perf_counter() - began, found[:, PROMPT:].tolist()


def time_ours(writer: Writer, prompts: torch.Tensor) -> tuple[float, list[list[int]]]:
    """With text and all."""
    began = time.perf_counter()
    texts = [writer.new_text(prompt) for prompt in prompts.tolist()]
    for _ in writer.write(texts):
        pass
    return time.perf_counter() - began, [text.tokens for text in texts]


def compare(theirs: transformers.PreTrainedModel, trained: Trained, *, batch: int, rounds: int) -> tuple[float, float]:
    """Median tokens per second of both."""
    writer = Writer(trained, sampling=Sampling(), max_new_tokens=NEW)
    prompts = torch.randint(0, 256, (batch, PROMPT), generator=torch.Generator().manual_seed(1))
    their_times, our_times = [], []
    for _ in range(rounds + 1):
        (their_time, their_tokens), (our_time, our_tokens) = time_theirs(theirs, prompts), time_ours(writer, prompts)
        assert their_tokens == our_tokens, "both write the same"
        their_times.append(their_time)
        our_times.append(our_time)
    their_rate, our_rate = (batch * NEW / statistics.median(times[1:]) for times in (their_times, our_times))
    return their_rate, our_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="after one that warms up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    rows = []
    for name, sizes in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            theirs, trained = new_pair(Path(folder), sizes)
            for batch in (1, 8):
                their_rate, our_rate = compare(theirs, trained, batch=batch, rounds=options.rounds)
                rates = [f"{their_rate:.1f}", f"{our_rate:.1f}", f"{our_rate / their_rate:.2f}"]
                rows.append([name, str(batch), *rates])
                print(*rows[-1], sep="\t", flush=True)
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEAD, ["---"] * len(HEAD), *rows)]
    before, _, _ = PAGE.read_text().partition(MARK)
    note = f"torch {torch.__version__}, transformers {transformers.__version__}, CPU threads: {options.threads}."
    PAGE.write_text(before + MARK + "\n".join(lines) + f"\n\n{note}\n")


if __name__ == "__main__":
    main()
