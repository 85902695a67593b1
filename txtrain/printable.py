"""For people to read: text that is safe to show, since a model may write any byte, and numbers at a glance."""


def printable(text: str) -> str:
    """Without what would move a terminal's cursor or ring its bell."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def one_line(text: str) -> str:
    """For a line of a terminal."""
    return printable(text).replace("\n", "⏎").replace("\t", " ")


def short(number: float) -> str:
    """12345 → 12.3k."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """3723 → 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
