"""The commands, and the one place where a user's mistake becomes one line.

Imports are inside the functions: PyTorch and Lightning take seconds, which a mistake in the config need not wait for.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from txtrain.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(arguments: Sequence[str]) -> int:
    """Train a model; with -m, one for each combination of options."""
    if {"--help", "-h"} & set(arguments):
        from txtrain.help import train_help

        print(train_help())
        return 0

    from txtrain.compose import compose

    composed = compose(arguments)
    if composed.sweep:
        return composed.sweep.report()
    if composed.config is not None:  # else Hydra has shown what it was asked for
        config = configure(composed.config, composed.overrides)
        from txtrain.train import train

        train(config, composed.overrides)
    return 0


def configure(config: "DictConfig", overrides: list[str]) -> "DictConfig":
    """The composed config, checked, with what it takes from the run that it resumes or starts from.

    Every rank composes the same command line; the first one then tells the others where the run is.
    """
    from omegaconf import OmegaConf

    from txtrain.config import check, find_run, resume_config, saved_config, to_plain
    from txtrain.run import RunDirectory

    parent = RunDirectory.of_parent()
    if parent:
        config.run_dir = str(parent.path)
    if config.resume:
        run = parent.path if parent else find_run(config.resume, config.name)
        config = resume_config(saved_config(run), config, overrides)
        config.resume = config.run_dir = str(run)
    elif config.init_from:
        from txtrain.start import same_model

        config = same_model(config, overrides)
    plain = to_plain(config)
    check(plain)
    return OmegaConf.create(plain)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"train": train}


def usage() -> str:
    """The commands, by the first line of what each says of itself."""
    lines = [f"  {name:<10} {inspect.getdoc(command)}" for name, command in COMMANDS.items()]
    return "\n".join(["txtrain COMMAND ... (txtrain COMMAND --help says more)", "", *lines])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0; 1 after a user's mistake, told in one line; 130 after Ctrl-C."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if command in ("--help", "-h"):
            print(usage())
            return 0
        if command not in COMMANDS:
            raise UserError(f"txtrain has no command {command}: type txtrain {' or '.join(COMMANDS)}")
        return COMMANDS[command](arguments)
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:  # what Lightning makes of Ctrl-C
        if isinstance(error.__context__, KeyboardInterrupt):
            return 130
        raise
