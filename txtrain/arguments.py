"""Command lines of all commands but train, whose overrides are Hydra's."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from typing import NoReturn

from txtrain.errors import UserError


class Parser(ArgumentParser):
    """Tells a mistake in one line.

    Args:
        prog: the command, such as `txtrain generate`.
        usage: how it is typed.
        description: shown by --help as it is.
    """

    def __init__(self, *, prog: str, usage: str, description: str) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see {self.prog} --help")
