"""`txtrain predict`: a line of JSON for each input, in batches from files, or at once for each line that comes."""

import json
import re
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, get_type_hints

import torch
import yaml

from txtrain.arguments import Parser
from txtrain.config import unknown_key
from txtrain.data.progress import Progress
from txtrain.devices import find_device
from txtrain.errors import UserError
from txtrain.predict.inputs import STREAM, Input, as_text, count_inputs, find_inputs, listen, parse_line, read_inputs
from txtrain.predict.output import Output, is_unicode, open_output
from txtrain.predict.predictor import Predictor
from txtrain.schema import arguments as signature
from txtrain.schema import check_value
from txtrain.terminal import Phase
from txtrain.trained import Trained, load_trained

DESCRIPTION = """What a trained model says of new inputs, a line of JSON for each.

  txtrain predict runs/NAME/RUN "a text"                      that text
  txtrain predict runs/NAME/RUN inputs.jsonl > told.jsonl     a batch: .jsonl, .csv, .tsv, .txt (a line each)
  txtrain predict runs/NAME/RUN inputs.csv --output told.csv  a table of it
  txtrain predict runs/NAME/RUN 'pictures/*.png'              files that are an input each, or a folder of them
  some program | txtrain predict runs/NAME/RUN -              lines of standard input, each answered at once

MODEL is a run directory (its best checkpoint), a checkpoint of it, or a Hugging Face model's folder. An input that is
a path is a file; any other is a text, or a JSON object with the fields of one. --text is never a path. KEY=VALUE are
options of its task, which the task's page in docs/tasks names. An input's own fields come first in its line; one that
cannot be read has its error there, and they are counted at the end."""
OVERRIDE = re.compile(r"[+~]*[A-Za-z_][\w.@/]*=")  # an option; in a text, = comes after a space
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def predict(arguments: Sequence[str]) -> None:
    """Does what the command line asks for."""
    options = parse(arguments)
    device = find_device(options.device)
    with Phase("loading the model"):
        trained = load_trained(options.model, device=device, dtype=DTYPES[options.dtype])
    if trained.task is None or trained.task.predictor is None:
        raise UserError(f"{options.model} continues texts: type txtrain generate {options.model}")
    predictor = new_predictor(trained.task.predictor, trained, options.overrides)
    if options.inputs == [STREAM]:
        with open_output(options.output) as output:
            answer(predictor, output)
        return
    found = [
        *find_inputs(options.inputs, predictor.suffixes),
        *(as_text(text, predictor.suffixes) for text in options.text),
    ]
    total = count_inputs(found, predictor.suffixes)
    shown = options.output is not None or not sys.stdout.isatty()  # else the lines appear as they come
    told, bad = 0, list[str]()
    with open_output(options.output, found) as output:
        with Progress("predicting", total, unit="inputs", shown=shown) as progress:
            for batch in _batches(read_inputs(found, predictor.suffixes), options.batch_size):
                bad += tell(predictor, batch, output, stop=options.on_bad == "stop")
                told += len(batch)
                progress.advance(len(batch))
        if bad:
            count(bad, told)


def parse(arguments: Sequence[str]) -> Namespace:
    """The model, inputs and options of its task, in any order, and flags."""
    parser = Parser(
        prog="txtrain predict",
        usage="txtrain predict MODEL INPUT [INPUT ...] [KEY=VALUE ...] [options]",
        description=DESCRIPTION,
    )
    add = parser.add_argument
    add("words", metavar="MODEL INPUT", nargs="*", help="the model, and texts, files, folders, globs, or - for lines")
    add("--text", action="append", default=[], metavar="TEXT", help="a text, whatever it looks like; may be repeated")
    add("--batch-size", type=int, default=16, metavar="N", help="inputs that go through the model together (16)")
    add("--on-bad", choices=("skip", "stop"), default="skip", help="what an input does that cannot be read (skip)")
    add("--output", type=Path, metavar="FILE", help="where to: a table if it is .csv (default: standard output)")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    add("--dtype", choices=DTYPES, default="float32", help="of the weights (float32)")
    options = parser.parse_intermixed_args(arguments)
    options.overrides = [word for word in options.words if OVERRIDE.match(word)]
    words = [word for word in options.words if word not in options.overrides]
    if len(words) + len(options.text) < 2 or not words:
        text = next((f"; if it is a text, type --text {shlex.quote(word)}" for word in options.overrides), "")
        raise UserError(
            f"predict needs a model and inputs: type txtrain predict runs/NAME/RUN FILE, TEXT, or - for lines{text}"
        )
    options.model, *options.inputs = words
    if STREAM in options.inputs and len(options.inputs) + len(options.text) > 1:
        raise UserError("- is standard input, and other inputs are named too: leave out one of them")
    if options.batch_size < 1:
        raise UserError(f"--batch-size is {options.batch_size}: give 1 or more")
    return options


def new_predictor(kind: type[Predictor], trained: Trained, overrides: Sequence[str]) -> Predictor:
    """The task's predictor with the options that the user typed."""
    known = {name: parameter for name, parameter in signature(kind)[0].items() if name != "trained"}
    hints = get_type_hints(kind.__init__, localns={"Trained": Trained})
    chosen = {}
    for override in overrides:
        name, _, text = override.partition("=")
        if name not in known:
            text = "" if kind.suffixes else f"; if it is a text, type --text {shlex.quote(override)}"
            raise UserError(unknown_key(name, known) + text)
        chosen[name] = yaml.safe_load(text)
        check_value(name, chosen[name], hints[name], known[name].default)
    return kind(trained, **chosen)


def tell(predictor: Predictor, inputs: Sequence[Input], output: Output, *, stop: bool = False) -> list[str]:
    """Writes a line for each input, and says what is wrong with those that cannot be read, which have that in theirs.

    All of them are read before the first goes through the model.

    Args:
        predictor: of the model.
        inputs: that go through it together.
        output: where the lines go.
        stop: whether one that cannot be read ends it all.

    Raises:
        UserError: one cannot be read, and that ends it.
    """
    read: dict[int, Any] = {}
    errors: dict[int, str] = {}
    for number, item in enumerate(inputs):
        try:
            if not is_unicode(json.dumps(item.record, ensure_ascii=False)):
                raise UserError("it has bytes or escapes that are no Unicode text: convert it to UTF-8")
            read[number] = predictor.read(predictor.beside(item.given, item.folder))
        except UserError as error:
            errors[number] = str(error) if str(error).startswith(item.place) else f"{item.place}: {error}"
            if stop:
                raise UserError(errors[number]) from error
    with torch.inference_mode():
        told = dict(zip(read, predictor.predict(list(read.values())), strict=True)) if read else {}
    for number, item in enumerate(inputs):
        output.write(item.record | (told[number] if number in told else {"error": errors[number]}))
    return list(errors.values())


def count(bad: Sequence[str], inputs: int) -> None:
    """Says how many inputs could not be read.

    Raises:
        UserError: none could.
    """
    if len(bad) == inputs:
        raise UserError(bad[0] if inputs == 1 else f"none of the {inputs} inputs can be read: the first is {bad[0]}")
    told = f"{len(bad)} of {inputs} inputs cannot be read and have an error in their line: the first is {bad[0]}"
    print("warning:", " ".join(told.split()), file=sys.stderr)


def answer(predictor: Predictor, output: Output) -> None:
    """Answers each line at once; one that cannot be read is told in its place, and the next one is read."""
    for line in listen():
        try:
            tell(predictor, [parse_line(line, predictor.suffixes)], output)
        except UserError as error:  # it is no JSON
            output.write({"error": str(error)})


def _batches(inputs: Iterator[Input], size: int) -> Iterator[list[Input]]:
    while batch := list(islice(inputs, size)):
        yield batch
