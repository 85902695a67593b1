"""Strings that end a text, wherever the borders of tokens are."""

from collections.abc import Sequence


class StopStrings:
    """Passes text on up to the first of some strings, and holds back what may become the beginning of one.

    Args:
        strings: none of them empty.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self.held = ""
        self.met = False

    def add(self, text: str) -> str:
        """What of the text so far is certain to stay and was not told before."""
        self.held += text
        places = [place for string in self.strings if (place := self.held.find(string)) >= 0]
        self.met = bool(places)
        certain = min(places) if places else len(self.held) - self._beginning()
        told, self.held = self.held[:certain], self.held[certain:]
        return told

    def flush(self) -> str:
        """What was held back, if no string was met."""
        return "" if self.met else self.held

    def _beginning(self) -> int:
        """How many of the last characters begin one of the strings."""
        longest = max(map(len, self.strings), default=1) - 1
        lengths = range(min(longest, len(self.held)), 0, -1)
        return next((n for n in lengths if any(s.startswith(self.held[-n:]) for s in self.strings)), 0)
