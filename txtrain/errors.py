"""The one exception that users see, always as a single line."""


class UserError(Exception):
    """A user's mistake, told in one line: what is wrong, what was got, and the override to type.

    Raised wherever the mistake is found; `txtrain.cli` prints it without a traceback and exits with code 1.

    Attributes:
        told: whether another process of the run prints the same line.
    """

    told: bool = False
