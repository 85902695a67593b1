"""The commands, and the one place where a user's mistake becomes one line.

Imports are inside the functions: PyTorch and Lightning take seconds, which a mistake in the config need not wait for.
"""

import atexit
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, NoReturn

from txtrain.completion import QUERY, complete
from txtrain.errors import UserError
from txtrain.printable import printable
from txtrain.signals import Interrupted, drop_output, flush_output, inbox, is_unread, open_streams, tell
from txtrain.trust import trust

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


def train(arguments: Sequence[str]) -> int:
    """Train a model; with -m, one for each combination of options."""
    if {"--help", "-h"} & set(arguments):
        from txtrain.help import train_help

        print(train_help())
        return 0
    if "--version" in arguments:
        return version()

    from txtrain.compose import compose
    from txtrain.launch import find_launch
    from txtrain.trust import read_trust

    launch = find_launch()
    with launch.first_tells():
        if {"-m", "--multirun"} & set(arguments):
            if launch.starter != "python":
                raise UserError(f"{launch.starter} starts the processes of one run, no sweep: type python train.py -m")
            if os.environ.get("WANDB_SWEEP_ID"):
                raise UserError("wandb agent starts one run at a time: leave out -m in the command of its sweep")
        with launch.mistakes_once():
            trust(read_trust(arguments))
            composed = compose(arguments)
        if composed.sweep:
            return composed.sweep.report()
        if composed.config is not None:  # else Hydra has shown what it was asked for
            run(configure(composed.config, composed.overrides), composed.overrides)
    return 0


def run(config: "DictConfig", overrides: list[str]) -> None:
    """Trains; a job of SLURM whose time is over is queued again, once all that it has open is closed."""
    from txtrain.launch import find_launch, requeue, slurm_job
    from txtrain.terminal import console

    with _loading("loading PyTorch and Lightning"):
        from txtrain.train import train
    try:
        train(config, overrides)
    except Interrupted as end:
        if end.agreed and end.number == signal.SIGUSR1 and slurm_job() and find_launch().rank == 0:
            log.info(requeue())
        raise
    finally:
        if console.lost:  # as it has told; what waits in the stream's buffer would fail once more
            drop_output()


def configure(config: "DictConfig", overrides: list[str]) -> "DictConfig":
    """The composed config, checked, with what it takes from the run that it resumes or starts from.

    Every rank composes the same command line; the first one then tells the others where the run is.
    """
    from omegaconf import OmegaConf

    from txtrain.config import check, check_scalars, find_run, literal, resume_config, saved_config, to_plain
    from txtrain.implied import fill_implied, fill_stated
    from txtrain.launch import find_launch
    from txtrain.mixtures import spread
    from txtrain.run import RunDirectory
    from txtrain.sizes import check_layers
    from txtrain.trust import trusted

    OmegaConf.update(config, "trust", trusted(), force_add=True)  # for people to read only
    check_scalars(config)
    fill_implied(config)
    fill_stated(config, overrides)
    first = RunDirectory.of_first()
    if first:
        config.run_dir = str(first.path)
    here = RunDirectory(config.run_dir) if config.run_dir else RunDirectory.default(config.name)
    if config.resume:
        run = first.path if first else find_run(config.resume, config.name)
        config = resume_config(saved_config(run), config, overrides)
        config.resume = config.run_dir = str(run)
    elif here.goes_on():
        config = saved_config(here.path)
        config.resume = config.run_dir = str(here.path)
        if first is None:
            print(f"SLURM has started this job again: going on with {here.path}")
    elif config.init_from == "":
        raise UserError(
            "init_from is missing, the trained model to start from: type init_from=FOLDER, a Hugging Face folder "
            "(hf download NAME --local-dir FOLDER) or a run (runs/NAME/RUN)"
        )
    elif config.init_from:
        from txtrain.start import same_model

        config = same_model(config, overrides)
    OmegaConf.update(config, "trust", trusted(), force_add=True)  # a run's own is never read
    spread(config)
    plain = to_plain(config)
    check(plain, overrides)
    if config.resume:
        check_layers(Path(config.resume), plain)
    config = literal(plain)
    find_launch().agree(config.trainer, overrides)
    return config


def audit(arguments: Sequence[str]) -> int:
    """Show which samples a step of a run saw: txtrain audit RUN STEP."""
    from txtrain.audit import audit

    audit(arguments)
    return 0


def generate(arguments: Sequence[str]) -> int:
    """Write text with a trained model: txtrain generate MODEL "prompt"."""
    _call("txtrain.generate.command:generate", arguments)
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """Measure how good trained models are: txtrain eval MODEL."""
    with _loading("loading PyTorch and Lightning"):
        from txtrain.evaluate.command import evaluate
    evaluate(arguments)
    return 0


def predict(arguments: Sequence[str]) -> int:
    """Say what a trained model makes of new inputs: txtrain predict MODEL INPUTS."""
    _call("txtrain.predict.command:predict", arguments)
    return 0


def export(arguments: Sequence[str]) -> int:
    """Write a trained model as a Hugging Face folder: txtrain export MODEL FOLDER."""
    _call("txtrain.interop.export:export", arguments)
    return 0


def _call(command: str, arguments: Sequence[str]) -> None:
    """Run `module:function`, whose standard output is its result: status lines and bars go to standard error."""
    from txtrain.terminal import status_on_stderr

    with status_on_stderr():
        with _loading("loading PyTorch"):
            function = resolve_name(command)
            from txtrain.logger import setup_logging
        setup_logging(None, 0)
        function(arguments)


def _loading(text: str) -> AbstractContextManager[object]:
    """Names a long import on the terminal, on the first rank."""
    from txtrain.launch import find_launch
    from txtrain.terminal import Phase

    return Phase(text) if find_launch().rank == 0 else nullcontext()


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": train,
    "audit": audit,
    "generate": generate,
    "predict": predict,
    "eval": evaluate,
    "export": export,
}


def version() -> int:
    """Print what is installed."""
    import platform

    from txtrain import __version__

    print(f"txtrain {__version__} (Python {platform.python_version()})")
    return 0


def usage() -> str:
    """The commands, by the first line of what each says of itself."""
    lines = [f"  {name:<10} {inspect.getdoc(command)}" for name, command in COMMANDS.items()]
    return "\n".join(["txtrain COMMAND ... (txtrain COMMAND --help says more)", "", *lines])


def start(argv: Sequence[str] | None = None) -> NoReturn:
    """`main` as all that a process does, which ends with its exit code.

    It ends as Python would but takes nothing down: gloo's threads may still hold tensors then, whose release in a
    Python that is half gone ends the process by SIGABRT (https://github.com/pytorch/pytorch/issues/190489).
    """
    code = 1  # of an error that is not caught

    def leave() -> NoReturn:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)

    atexit.register(leave)  # first, so that it is called last
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0; 1 after a user's mistake, told in a line; 128 + n after signal n"""
    open_streams()
    with inbox.opened():
        try:
            try:
                code = _main(argv)
            finally:
                written = flush_output()
            return code if written else code or 1
        except BrokenPipeError:
            if not is_unread():  # another pipe has broken
                raise
            drop_output()  # else Python fails once more at its end
            return 128 + signal.SIGPIPE
        except OSError:
            if written and flush_output("\n"):  # something else has failed
                raise
            return 1


def _main(argv: Sequence[str] | None) -> int:
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if command in ("--help", "-h"):
            print(usage())
            return 0
        if command == QUERY:
            complete([command, *arguments], COMMANDS)
            return 0
        if command == "--version":
            return version()
        trust(())  # what a command before this one was typed with, where one process runs several
        if command not in COMMANDS:
            raise UserError(f"txtrain has no command {command}: type txtrain {' or '.join(COMMANDS)}")
        return COMMANDS[command](arguments)
    except UserError as error:
        if not error.told:
            tell(f"error: {printable(' '.join(str(error).split()))}")
        return 1
    except MemoryError as error:
        tell(f"error: there is not enough memory ({error}): take smaller numbers")
        return 1
    except KeyboardInterrupt:
        return 130
    except Interrupted as end:
        from txtrain.launch import find_launch

        if not end.agreed or end.number == signal.SIGPIPE:
            tell(str(end))
        # Of the first process only: who started them ends all of them when one fails, and it may not be done yet.
        return 0 if find_launch().rank and end.agreed else 128 + end.number
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        if isinstance(error.__context__, KeyboardInterrupt):
            return 130
        raise
