"""The commands, and the one place where a user's mistake becomes one line.

Imports are inside the functions: PyTorch and Lightning take seconds, which a mistake in the config need not wait for.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from txtrain.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig


def train(arguments: Sequence[str]) -> int:
    """Train a model; with -m, one for each combination of options."""
    from omegaconf import OmegaConf

    if {"--help", "-h"} & set(arguments):
        from txtrain.help import train_help

        print(train_help())
        return 0
    if "TXTRAIN_RUN_DIR" in os.environ:
        from txtrain.run import RunDirectory

        if parent := RunDirectory.of_parent():  # this is a further rank of a run whose config was checked
            return _fit(OmegaConf.create(parent.config()), [])

    from txtrain.compose import compose
    from txtrain.config import check, find_run, resume_config, to_plain

    composed = compose(arguments)
    if composed.sweep:
        return composed.sweep.report()
    config = composed.config
    if config is None:  # Hydra has shown what it was asked for
        return 0
    if config.resume:
        run = find_run(config.resume, config.name)
        config = resume_config(OmegaConf.load(run / "config.yaml"), config, composed.overrides)
        config.resume = config.run_dir = str(run)
    elif config.init_from:
        from txtrain.start import same_model

        config = same_model(config, composed.overrides)
    plain = to_plain(config)
    check(plain)
    return _fit(OmegaConf.create(plain), composed.overrides)


def _fit(config: "DictConfig", overrides: list[str]) -> int:
    from txtrain.train import train

    train(config, overrides)
    return 0


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
