"""`txtrain eval`: how good trained models are at their tasks, on any number of devices, and by length of context."""

import logging
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from torch import nn

from txtrain.arguments import Parser
from txtrain.compose import compose, split
from txtrain.config import instantiate
from txtrain.errors import UserError
from txtrain.evaluate.meter import Meter
from txtrain.evaluate.plot import check_plot, plot
from txtrain.evaluate.progress import EvaluationProgress
from txtrain.evaluate.result import Bucket, Result, edges, table, table_by_position, write
from txtrain.evaluate.subject import Subject, check_length, new_subject, sample_length, typed_keys
from txtrain.evaluate.sweeps import expand_sweeps
from txtrain.launch import find_launch
from txtrain.logger import setup_logging
from txtrain.model.transformer import TransformerStack
from txtrain.plots.canvas import check_matplotlib
from txtrain.plots.folder import hang
from txtrain.plots.gallery import Choice, Gallery
from txtrain.plots.guesses import Guesses
from txtrain.run_model import class_of
from txtrain.strategy import ending_processes
from txtrain.task.causal_lm import CausalLM
from txtrain.task.classification import Classification
from txtrain.train import new_strategy, new_task, telling_mistakes
from txtrain.trainer import lightning_trainer

DESCRIPTION = """The loss and other numbers of trained models on their task.

  txtrain eval runs/gpt/RUN                                      on its own validation data
  txtrain eval runs/gpt/RUN data=text data.path=my.txt           on other text, all of it
  txtrain eval runs/gpt/sweeps/SWEEP                             all of its jobs, labelled by their overrides
  txtrain eval RUN RUN --by-position data.seq_len=2048 --plot f.png    against the length of context
  txtrain eval runs/gpt/RUN trainer.devices=8 strategy=fsdp      on several devices: the same numbers
  txtrain eval runs/gpt/RUN --plots --layers 0,5 --heads 0,3     pictures of it, into the run's folder

MODEL is a run directory (its best checkpoint), a checkpoint of it, a sweep's directory, or a Hugging Face model's
folder, which needs data=. Overrides are those of train, of the groups data, trainer and strategy."""

log = logging.getLogger(__name__)


def evaluate(arguments: Sequence[str]) -> None:
    """Does what the command line asks for."""
    options = parse(arguments)
    launch = find_launch()
    setup_logging(None, launch.rank)
    with launch.first_tells(), telling_mistakes():
        if options.plot:
            check_plot(options.plot)
        if options.plots:
            check_matplotlib("--plots")
        composed = compose(options.overrides).config
        if composed is None:
            raise UserError("eval takes no sweep: give one value to each key")
        typed = typed_keys(options.overrides)
        launch.agree(composed.trainer, options.overrides)
        if launch.rank and launch.starter != "python":
            launch.hear()
        subjects = iter_subjects(expand_sweeps(options.models), composed, typed)
        first = next(subjects)
        if options.by_position and class_of(first.config.task, "task") is not CausalLM:
            raise UserError(
                "--by-position and --plot are for models that continue texts (task=causal_lm): leave them out"
            )
        if options.plots:
            options.choice.of(first.model, len(first.data.first_part.samples("validation")))
        launch.tell("eval")
        nodes = {group: node for group, node in first.config.items() if OmegaConf.is_config(node)}
        parts = {group: instantiate(node, group) for group, node in nodes.items()}
        trainer = lightning_trainer(parts["trainer"], new_strategy(first.config, parts))
    with ending_processes(trainer):
        found = [measure(trainer, subject, parts, options) for subject in (first, *subjects)]
    if launch.rank == 0:
        tell([result for result, _ in found], options)
        for result, pictures in found:
            hang(pictures, result.run)


def parse(arguments: Sequence[str]) -> Namespace:
    """Models and overrides, in any order, and flags."""
    parser = Parser(
        prog="txtrain eval", usage="txtrain eval MODEL [MODEL ...] [KEY=VALUE ...] [options]", description=DESCRIPTION
    )
    parser.add_argument("words", metavar="MODEL", nargs="*", help="run, checkpoint or folder")
    parser.add_argument("--by-position", action="store_true", help="the loss against the length of context too")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of that, such as loss.png")
    parser.add_argument("--plots", action="store_true", help="pictures of what there is to see, as PNG files")
    parser.add_argument("--layers", type=numbers, metavar="N,N", help="of attention maps; default: first, middle, last")
    parser.add_argument("--heads", type=numbers, metavar="N,N", help="of attention maps; default: the first 8")
    parser.add_argument("--sample", type=int, metavar="N", help="number of the validation sample that is shown")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all numbers, a line of JSON for each model")
    options = parser.parse_intermixed_args(arguments)
    options.models, options.overrides = split(options.words)
    options.by_position |= options.plot is not None
    chosen = {name: getattr(options, name) for name in ("layers", "heads", "sample")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if chosen and not options.plots:
        raise UserError(f"--{min(chosen)} says what --plots shows: type --plots too, or leave it out")
    options.choice = Choice(**chosen)
    if not options.models:
        raise UserError("eval needs a model: type txtrain eval runs/NAME/RUN")
    return options


def numbers(text: str) -> list[int]:
    """`0,5` → [0, 5]."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"{text} are no numbers, type them such as 0,5") from None


def iter_subjects(models: Sequence[tuple[str, str]], composed: DictConfig, typed: set[str]) -> Iterator[Subject]:
    """The models one after the other, so that one is held at a time. Of several, those that cannot are left out.

    Args:
        models: label and path of each.
        composed: what the command line would make of a new run.
        typed: the keys that the user gave.
    """
    first, found = None, False
    for number, (name, path) in enumerate(models, start=1):
        subject = replace(new_subject(path, composed, typed), name=name)
        first = first or subject.config
        if subject.config.trainer.precision != first.trainer.precision:
            raise UserError(
                f"{name} was trained with trainer.precision={subject.config.trainer.precision} and {models[0][0]} with "
                f"{first.trainer.precision}: type trainer.precision={first.trainer.precision} to compare them"
            )
        reason = check_length(subject)
        if reason and (found or number < len(models)):
            log.warning("%s: left out", reason)
        elif reason:
            raise UserError(reason)
        else:
            found = True
            yield subject


def measure(
    trainer: Trainer, subject: Subject, parts: dict[str, Any], options: Namespace
) -> tuple[Result, dict[str, bytes]]:
    """Validates one model as training does, and draws what was asked for: PNG files by name."""
    model, data, config = subject.model, subject.data, subject.config
    new = instantiate(config.task, "task")
    length, samples = sample_length(data), len(data.first_part.samples("validation"))
    meter = Meter(length=length) if new.func is CausalLM and length is not None else None
    guesses = Guesses(parts["loss"]) if options.plots and issubclass(new.func, Classification) else None
    gallery = Gallery(options.choice, model, samples, guesses) if options.plots else None
    instead = meter or guesses
    task = new_task(config, parts | {"task": new} | ({"loss": instead} if instead else {}), lambda: model, None)
    shown = EvaluationProgress(subject.name)
    trainer.callbacks = [callback for callback in (meter, guesses, shown, gallery) if callback is not None]
    limit = config.trainer.limit_val_batches
    if not limit:
        raise UserError("trainer.limit_val_batches=0 evaluates nothing: type trainer.limit_val_batches=1.0")
    steps = data.accumulation(trainer.num_devices * trainer.num_nodes)
    trainer.limit_val_batches = limit * steps if isinstance(limit, int) else limit
    trainer.validate(task, datamodule=data, verbose=False)
    if not task.validation_targets:
        raise UserError(f"{subject.name}: {subject.text} hold nothing that could be scored: give more")
    metrics = {name.removeprefix("validation/"): value for name, value in task.validation.items()}
    result = Result(
        model=subject.name,
        encoding=" and ".join(dict.fromkeys(encodings(model))),
        trained_len=subject.trained_len,
        text=subject.text,
        unit=f"windows of {length} tokens" if meter else data.unit(),
        seq_len=length,
        metrics=metrics | ({"accuracy": int(meter.correct) / task.validation_targets} if meter else {}),
        targets=task.validation_targets,
        counted=task.targets,
        buckets=buckets(meter, subject.trained_len) if meter else [],
        run=subject.run,
    )
    return result, gallery.pictures if gallery else {}


def encodings(model: nn.Module) -> list[str]:
    """The classes of a model's positional encodings."""
    return [type(module.encoding).__name__ for module in model.modules() if isinstance(module, TransformerStack)]


def buckets(meter: Meter, trained_len: int) -> list[Bucket]:
    """The meter's sums, gathered."""
    found = []
    for lengths in edges(meter.length, trained_len):
        place = slice(lengths.start - 1, lengths.stop - 1)
        entropy, targets = float(meter.entropy[place].sum()), int(meter.targets[place].sum())
        found.append(Bucket(first=lengths.start, last=lengths.stop - 1, entropy=entropy, targets=targets))
    return found


def tell(results: Sequence[Result], options: Namespace) -> None:
    """Prints the tables and writes the files that were asked for."""
    print(f"{results[0].text}, {results[0].unit}\n\n{table(results)}")
    if options.by_position:
        print(f"\n{table_by_position(results)}")
    if "bits_per_byte" in results[0].metrics and len({result.targets for result in results}) > 1:
        print("\nThe models have other tokenizers or data: compare bits per byte, not losses.")
    if options.json:
        write(options.json, results, by_position=options.by_position)
    if options.plot:
        plot(options.plot, results)
        print(f"\n{options.plot}")
