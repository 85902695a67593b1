"""Makes a text of many gigabytes, prepares it and trains the first steps of two epochs; tells memory and time.

    python scripts/scale.py --size 5GB                    # of .txt, a line to each paragraph
    python scripts/scale.py --size 500MB --kind jsonl --tokenizer byte
    python scripts/scale.py --size 300MB --kind csv --lines one

Memory is RssAnon: what a process has itself, without files that are mapped. It is read every few milliseconds and
summed over the process and those that it starts; "above" is above the same process after a text of a few words.
"""

import argparse
import csv
import io
import json
import logging
import multiprocessing
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNITS = {"MB": 10**6, "GB": 10**9}
KINDS = ("txt", "jsonl", "csv", "parquet")
WORDS = 50_000  # different ones
PARAGRAPH = 2_000  # characters, about
GROUP = 40_000_000  # characters of a group of rows of .parquet, about
CELL = 45_000_000  # bytes of a text of a table with `--lines one`: several in 100 MB


def size_of(text: str) -> int:
    return int(float(text[:-2]) * UNITS[text[-2:].upper()])


def paragraphs(size: int, seed: int = 0) -> Iterator[str]:
    """Words whose frequencies fall as those of a language do (Zipf), so many bytes in all."""
    draw = random.Random(seed)
    letters = "etaoinshrdlcumwfgypbvk"
    words = ["".join(draw.choices(letters, k=draw.randint(1, 10))) for _ in range(WORDS)]
    weights = [1 / (rank + 10) for rank in range(WORDS)]
    stock = draw.choices(words, weights, k=400_000)
    while size > 0:
        start = draw.randrange(len(stock) - 400)
        text = f"{draw.randrange(10**9)} " + " ".join(stock[start : start + 400])[:PARAGRAPH] + "."
        yield text[:size]
        size -= len(text) + 1


def make(folder: Path, *, kind: str, size: int, lines: str, files: int = 1) -> Path:
    """Files of text, of so many bytes in all; with `lines="one"` in as few lines or rows as there may be."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        texts = paragraphs(size // files, seed=number)
        if lines == "one" and kind != "txt":
            texts = joined(texts)
        write(folder / f"{number:06}.{kind}", texts, kind, "\n" if lines == "many" else " ")
    return folder


def joined(texts: Iterator[str]) -> Iterator[str]:
    """Texts of some ten megabytes."""
    held: list[str] = []
    length = 0
    for text in texts:
        held.append(text)
        length += len(text) + 1
        if length >= CELL:
            yield " ".join(held)
            held, length = [], 0
    if held:
        yield " ".join(held)


def groups(texts: Iterator[str]) -> Iterator[list[str]]:
    """Texts of some ten megabytes together, as groups of rows should be: a reader holds one or two of them."""
    held: list[str] = []
    for text in texts:
        held.append(text)
        if sum(map(len, held)) >= GROUP if len(text) > PARAGRAPH * 10 else len(held) * PARAGRAPH >= GROUP:
            yield held
            held = []
    if held:
        yield held


def write(file: Path, texts: Iterator[str], kind: str, end: str) -> None:
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        schema = pyarrow.schema([("text", pyarrow.string())])
        with parquet.ParquetWriter(file, schema) as writer:
            for group in groups(texts):
                writer.write_table(pyarrow.table({"text": group}, schema=schema))
        return
    with file.open("w", encoding="utf-8", newline="") as stream:
        if kind == "csv":
            stream.write("text\r\n")
        for text in texts:
            if kind == "txt":
                stream.write(text + end)
            elif kind == "jsonl":
                stream.write(json.dumps({"text": text}) + "\n")
            else:
                row = io.StringIO(newline="")
                csv.writer(row).writerow([text])
                stream.write(row.getvalue())


def resident() -> int:
    """Bytes of RssAnon of this process and all that it has started."""
    total, waiting = 0, [os.getpid()]
    while waiting:
        process = waiting.pop()
        try:
            status = Path(f"/proc/{process}/status").read_text()
            for task in Path(f"/proc/{process}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:  # it has ended
            continue
        total += next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return total


@contextmanager
def peak(interval: float = 0.005) -> Iterator[dict[str, float]]:
    """Measures while it is open: `bytes`, the most that were resident, and `seconds`."""
    found, over, began = {"bytes": float(resident())}, threading.Event(), time.monotonic()

    def watch() -> None:
        while not over.wait(interval):
            found["bytes"] = max(found["bytes"], resident())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        found["seconds"] = time.monotonic() - began


def data(path: Path, cache_dir: Path, tokenizer: str, vocab_size: int = 4096) -> Any:
    from txtrain.data.text import TextFiles
    from txtrain.data.tokenizer import BPE, Byte

    made = Byte() if tokenizer == "byte" else BPE(vocab_size=vocab_size)
    return TextFiles(path=str(path / "*"), tokenizer=made, cache_dir=str(cache_dir))


def prepare(path: Path, folder: Path, *, kind: str, tokenizer: str) -> dict[str, float]:
    """What `peak` finds, and how much more that is than the process has after preparing a few words."""
    few = make(folder / "few", kind=kind, size=20_000, lines="many")
    data(few, folder / "cache", tokenizer, vocab_size=300).prepare()
    bare = resident()
    with peak() as found:
        data(path, folder / "cache", tokenizer).prepare()
    return {**found, "above": found["bytes"] - bare}


def train(path: Path, folder: Path, *, tokenizer: str, steps: int) -> dict[str, float]:
    """The first steps of two epochs: each has its own order of all windows, and is cut short."""
    from txtrain.cli import main
    from txtrain.data import base
    from txtrain.data.order import Shuffled

    class Short(Shuffled):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.steps = min(self.steps, steps)

    # No option does this: an epoch is all of the data.
    base.Shuffled = Short  # type: ignore[misc]

    with peak() as found:
        code = main(
            [
                *("train", "data=text", f"data.path={path}/*", f"tokenizer={tokenizer}", "model=nano", "logger=none"),
                *(f"data.cache_dir={folder}/cache", f"run_dir={folder}/run", "samples.length=0"),
                *("trainer.max_epochs=2", f"trainer.max_steps={2 * steps}", "trainer.log_every_n_steps=1"),
                *("trainer.limit_val_batches=2", "trainer.accelerator=cpu", "data.seq_len=64", "data.batch_size=4"),
            ]
        )
    if code:
        raise SystemExit(code)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size_of, default=size_of("5GB"), help="of the text, such as 300MB or 5GB")
    parser.add_argument("--kind", choices=KINDS, default="txt")
    parser.add_argument("--lines", choices=("many", "one"), default="many", help="a line to each paragraph, or one")
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--tokenizer", choices=("bpe", "byte"), default="bpe")
    parser.add_argument("--steps", type=int, default=3, help="of each epoch; 0 prepares alone")
    parser.add_argument("--folder", type=Path, help="for the text and its tokens, twice the size; default: a new one")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="txtrain-scale-"))
    try:
        began = time.monotonic()
        path = folder / "text"
        options = {"kind": given.kind, "size": given.size, "lines": given.lines, "files": given.files}
        # In a process of its own, whose memory is not that of this one.
        making = multiprocessing.get_context("spawn").Process(target=make, args=(path,), kwargs=options)
        making.start()
        making.join()
        if making.exitcode:
            raise SystemExit(making.exitcode)
        print(f"made {given.size / 1e6:,.0f} MB of .{given.kind} in {time.monotonic() - began:.0f} s", flush=True)
        found = prepare(path, folder, kind=given.kind, tokenizer=given.tokenizer)
        told = f"{found['bytes'] / 1e6:.0f} MB in all, {found['above'] / 1e6:.0f} MB above the bare process"
        print(f"prepared: {told}, {found['seconds']:.0f} s", flush=True)
        if given.steps:
            found = train(path, folder, tokenizer=given.tokenizer, steps=given.steps)
            print(f"trained: {found['bytes'] / 1e6:.0f} MB in all, {found['seconds']:.0f} s")
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
