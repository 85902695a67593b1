"""Text that is safe to show: a model may write any byte."""


def printable(text: str) -> str:
    """Without what would move a terminal's cursor or ring its bell."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def one_line(text: str) -> str:
    """For a line of a terminal."""
    return printable(text).replace("\n", "⏎").replace("\t", " ")
