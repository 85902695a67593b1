"""Command lines of all commands but train, whose overrides are Hydra's."""

from argparse import SUPPRESS, Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any, NoReturn

from txtrain.errors import UserError
from txtrain.trust import check_packages, trust, trusted

FORM = "--trust {}"


class Trust(Action):
    """`--trust my_package`, once or several times, or with commas."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"dest": SUPPRESS})

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None) -> None:
        names = [name.strip() for name in str(values).split(",")]
        trust([*trusted(), *check_packages(names, "--trust my_package")], form=FORM)


def take_trust(arguments: Sequence[str]) -> list[str]:
    """A command line without its `--trust my_package`, which is then trusted."""
    parser = Parser(prog="txtrain", usage="", description="", add_help=False)
    return parser.parse_known_args(list(arguments))[1]


class Parser(ArgumentParser):
    """Tells a mistake in one line.

    Args:
        prog: the command, such as `txtrain generate`.
        usage: how it is typed.
        description: shown by --help as it is.
        add_help: whether there is --help.
    """

    def __init__(self, *, prog: str, usage: str, description: str, add_help: bool = True) -> None:
        trust(trusted(), form=FORM)
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            formatter_class=RawDescriptionHelpFormatter,
            allow_abbrev=False,
            add_help=add_help,
        )
        self.add_argument(
            "--trust", action=Trust, metavar="PACKAGE", help="a package whose classes MODEL may name; its code will run"
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see {self.prog} --help")
