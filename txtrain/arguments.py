"""Command lines of all commands but train, whose overrides are Hydra's."""

from argparse import SUPPRESS, Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any, NoReturn

from txtrain.errors import UserError
from txtrain.trust import TRUST_ALONE, check_packages, read_trust, trust, trusted

FORM = "--trust {}"


class Trust(Action):
    """`--trust my_package`, once or several times, or with commas."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"dest": SUPPRESS})

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None) -> None:
        names = [name.strip() for name in str(values).split(",")]
        trust([*trusted(), *check_packages(names, "--trust my_package")], form=FORM)


def take_trust(arguments: Sequence[str]) -> list[str]:
    """A command line without its `--trust my_package` or `trust=[my_package]`, which is then trusted."""
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

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        return super().parse_known_args(self._trusting(args), namespace)

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        return super().parse_known_intermixed_args(self._trusting(args), namespace)

    def _trusting(self, arguments: Sequence[str]) -> list[str]:
        """The words without `trust=[my_package]`, which is trusted as by train; values and what is after -- stay."""
        ours, kept = list(arguments), list[str]()
        while ours and ours[0] != "--":
            word = ours.pop(0)
            action = self._option_string_actions.get(word)
            if action is None and TRUST_ALONE.fullmatch(word):
                trust([*trusted(), *read_trust([word])], form=FORM)
                continue
            kept.append(word)
            if action is not None and action.nargs is None and ours:
                kept.append(ours.pop(0))
        return kept + ours

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: see {self.prog} --help")
