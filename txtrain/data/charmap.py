"""SentencePiece's rules of normalisation, compiled: which characters become which others, the longest first.

The file has a double-array trie over UTF-8 (https://github.com/s-yata/darts-clone) and the texts that it leads to.
"""

import struct
from array import array
from functools import lru_cache
from sys import byteorder


class CharacterMap:
    """Replaces characters, each time the longest run that a rule has.

    Args:
        compiled: the rules, as `precompiled_charsmap` has them.
    """

    def __init__(self, compiled: bytes) -> None:
        (size,) = struct.unpack("<I", compiled[:4])
        self._units, self._texts = array("I", compiled[4 : 4 + size]), compiled[4 + size :]
        if byteorder == "big":
            self._units.byteswap()
        # What a character becomes is nearly always settled by the next one.
        self._known = lru_cache(maxsize=100_000)(self._longest)

    def __call__(self, text: str) -> str:
        found, place = [], 0
        while place < len(text):
            length, new, settled = self._known(text[place : place + 2])
            if not settled:
                length, new, _ = self._longest(text[place : place + 32])
            found.append(new)
            place += length
        return "".join(found)

    def _longest(self, text: str) -> tuple[int, str, bool]:
        """How many characters at the beginning are replaced, by what, and whether more text makes no difference."""
        units, length, new = self._units, 1, text[0]
        node = _offset(units[0])
        for end, character in enumerate(text, start=1):
            for byte in character.encode("utf-8", "replace"):
                node ^= byte
                unit = units[node] if node < len(units) else 0
                if unit & 0x800000FF != byte:  # there is no rule that goes on so
                    return length, new, True
                node ^= _offset(unit)
            if unit >> 8 & 1:
                length, new = end, self._text(units[node] & 0x7FFFFFFF)
        return length, new, False

    def _text(self, place: int) -> str:
        return self._texts[place : self._texts.index(b"\0", place)].decode()


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & (1 << 9)) >> 6)
