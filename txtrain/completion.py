"""Completion of the installed command in a shell.

Hydra's scripts for bash and fish ask `PROGRAM -sc query=SHELL` for what may follow the line in COMP_LINE, and know no
commands: for `txtrain train ...` Hydra answers as if the line had no `train`, for others the shell completes files.
"""

import os
import re
from collections.abc import Iterable

QUERY = "-sc"


def complete(arguments: list[str], commands: Iterable[str]) -> None:
    """Prints what may follow the command line in the environment variable COMP_LINE, one line or word each.

    Args:
        arguments: `-sc query=SHELL`.
        commands: of the program.
    """
    line = os.environ.get("COMP_LINE", "")
    words = line.split()[1:]
    if not words or (len(words) == 1 and not line[-1].isspace()):
        typed = words[0] if words else ""
        print(*(command for command in commands if command.startswith(typed)), sep="\n")
    elif words[0] == "train":
        from txtrain.compose import compose

        rest = re.sub(r"^\s*\S+\s+train\s*", "", line)
        os.environ["COMP_LINE"] = f"txtrain {rest}"
        compose(arguments)
