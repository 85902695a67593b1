"""Which samples an optimizer step of a run saw: computed from its directory, without the run."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from txtrain import records
from txtrain.arguments import take_trust
from txtrain.config import check, instantiate, saved_config, to_plain
from txtrain.data import cache
from txtrain.data.base import Data, Origin
from txtrain.data.order import samples_of_step
from txtrain.errors import UserError
from txtrain.printable import one_line

USAGE = """txtrain audit RUN STEP: which samples an optimizer step of a run saw

  RUN      a run directory
  STEP     a step, such as 120, or a range, such as 120..125
  --json   for programs: one JSON object
  --trust PACKAGE   a package whose classes RUN may name; its code will run

Steps count from 1, as in train.log and metrics.jsonl. It needs no checkpoint and no GPU."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sample as a step saw it.

    Attributes:
        index: its number, in its data set if there are several.
        set: the name of that.
        token: where in the token file it begins.
        rows: where it comes from: of conversations files and lines, of other data files.
        text: how it begins; with rows each of them.
    """

    index: int
    set: str | None
    token: int | None
    rows: list[str]
    text: str | None


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one optimizer step saw: the samples at the positions from `position` on of an epoch's order."""

    step: int
    epoch: int
    position: int
    samples: list[Sample]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The data of a run as they are now.

    Attributes:
        state: whether they are still those that the run saw, in words.
        unchanged: whether they are.
        there: whether what the run saw can be shown.
    """

    data: Data
    state: str
    unchanged: bool
    there: bool


def audit(arguments: Sequence[str]) -> None:
    """Prints what the command line asks for."""
    if {"--help", "-h"} & set(arguments):
        print(USAGE)
        return
    arguments = take_trust(arguments)
    flags = [argument for argument in arguments if argument.startswith("-")]
    words = [argument for argument in arguments if argument not in flags]
    if flags not in ([], ["--json"]):
        raise UserError(f"{' '.join(flags)} is no flag of audit: type txtrain audit RUN STEP, and --json if you like")
    if len(words) != 2:
        raise UserError(f"audit needs a run and a step, got {len(words)} words: type txtrain audit RUN STEP")
    run, steps = Path(words[0]), read_steps(words[1])
    record = read_record(run)
    source = find_source(run, record.fingerprint)
    found = list(seen(source, size=record.samples, steps=steps))
    if flags:
        outcome = {"run": str(run), "data": source.state, "data_unchanged": source.unchanged}
        print(json.dumps(outcome | {"steps": [asdict(step) for step in found]}, ensure_ascii=False, indent=2))
    else:
        print(f"data  {source.state}")
        for step in found:
            tell(step)


def read_steps(text: str) -> range:
    """`120` or `120..125`."""
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"STEP is {text}: give a step from 1 on, such as 120, or a range, such as 120..125")
    return range(first, last + 1)


def read_record(run: Path) -> records.DataRecord:
    """What the run wrote down of its data."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run directory (it has no config.yaml): type txtrain audit runs/NAME/RUN STEP")
    return records.read_record(run / "data.json", records.DataRecord)


def find_source(run: Path, fingerprint: str) -> Source:
    """The tokens that the run saw, if they are in the cache or can be made again, and whether the data have changed."""
    config = to_plain(saved_config(run))
    check(config)
    tokenizer = instantiate(config["tokenizer"], "tokenizer")
    data: Data = instantiate(config["data"], "data")(tokenizer=tokenizer, seed=config["seed"])
    try:
        now = data.fingerprint()
        state = "unchanged since the run" if now == fingerprint else "changed since the run"
    except UserError as error:
        now, state = None, f"cannot be read now ({error})"
    folder = data.cache_dir / fingerprint
    if now == fingerprint:
        data.prepare()
    elif folder.is_dir():
        cache.verify(folder, data.open)
        state += f"; shown is what the run saw, from {folder}"
    else:
        return Source(data=data, state=f"{state}, and {folder} is gone: no texts", unchanged=False, there=False)
    return Source(data=data, state=state, unchanged=now == fingerprint, there=True)


def seen(source: Source, *, size: int, steps: range) -> Iterator[Step]:
    """What the run's steps saw of `size` samples."""
    order = source.data.train_order(source.data.samples("train") if source.there else range(size))
    for step in steps:
        found = samples_of_step(order, step)
        samples = [new_sample(source, int(index)) for index in found.samples]
        yield Step(step=step, epoch=found.epoch, position=found.position, samples=samples)


def new_sample(source: Source, index: int) -> Sample:
    origin = source.data.origin(index) if source.there else Origin()
    name, own = source.data.locate(index)
    return Sample(index=own, set=name, token=origin.token, rows=list(origin.places), text=origin.text)


def tell(step: Step) -> None:
    last = step.position + len(step.samples) - 1
    print(f"step {step.step}  epoch {step.epoch}, positions {step.position} to {last}")
    for sample in step.samples:
        origin = ", ".join(sample.rows) or f"token {sample.token}"
        text = "" if sample.text is None else f": {one_line(sample.text)}"
        number = f"{sample.set}:{sample.index}" if sample.set else str(sample.index)
        print(f"  sample {number}" + (f"  from {origin}{text}" if sample.rows or text else ""))
