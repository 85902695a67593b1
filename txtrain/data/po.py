"""Gettext catalogues: messages and their translations, out of `.po` files, and what in them is plain language."""

import html
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
_DEFAULT = "#. Default:"

_PLACEHOLDER = re.compile(r"\$\{|\$[a-z]|%[-\d.]*[(sdifr]|\{[\w.:!]*\}|&[a-z]\b(?!;)")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_SYMBOL = re.compile(r"[a-z0-9]+([_-][a-z0-9]+)+")  # label_add_item: a message's name


class Message(NamedTuple):
    """A message, its translation, and the line of the file that it begins in."""

    source: str
    target: str
    line: int


@dataclass
class _Entry:
    """What has been read of an entry."""

    line: int = 0
    strings: dict[str, str] = field(default_factory=dict)
    fuzzy: bool = False

    def messages(self) -> Iterator[Message]:
        """Singular and plural are messages of their own, the plural with the last form that the language has."""
        one = self.strings.get("default") or self.strings.get("msgid", "")
        forms = [text for key, text in sorted(self.strings.items()) if key.startswith("msgstr")]
        several = self.strings.get("msgid_plural")
        pairs = [(one, forms[0])] if forms and not (several and len(forms) == 1) else []
        pairs += [(several, forms[-1])] if forms and several else []
        for source, target in pairs:
            if source and target and not self.fuzzy:
                yield Message(source, target, self.line)


def read_messages(lines: Iterable[str]) -> Iterator[Message]:
    """The messages of a catalogue that have a translation somebody has checked (none marked fuzzy).

    The format: https://www.gnu.org/software/gettext/manual/html_node/PO-Files.html. Where a message is a name, such as
    `label_add`, the comment `Default: "Add"` has its text, as in catalogues for Zope.
    """
    entry, key = _Entry(), ""
    for number, line in enumerate([*lines, ""], start=1):
        line = line.strip()
        if not line:
            yield from entry.messages()
            entry, key = _Entry(), ""
        elif line.startswith("#~"):
            key = ""
        elif line.startswith("#,"):
            entry.fuzzy = "fuzzy" in line
        elif line.startswith(_DEFAULT):
            key = "default"
            entry.strings[key] = _unquoted(line)
        elif line.startswith("#. ") and key == "default":
            entry.strings[key] += _unquoted(line)
        elif line.startswith("#"):
            key = ""
        elif line.startswith('"'):
            entry.strings[key] = entry.strings.get(key, "") + _unquoted(line)
        else:
            key, _, rest = line.partition(" ")
            entry.strings[key] = _unquoted(rest)
            entry.line = number if key == "msgid" else entry.line


def plain(message: Message) -> Message | None:
    """The message without markup, on one line; None if it is not plain language or no translation.

    Names of messages, texts with places to fill in, and texts that are the same in both languages are none.
    """
    if any(_PLACEHOLDER.search(text) for text in message[:2]) or _SYMBOL.fullmatch(message.source):
        return None
    source, target = (" ".join(html.unescape(_TAG.sub("", text)).split()) for text in message[:2])
    if source == target or not (re.search(r"[^\W\d]", source) and re.search(r"[^\W\d]", target)):
        return None
    return Message(source, target, message.line)


def _unquoted(line: str) -> str:
    """The strings of a line, one after the other."""
    strings = _STRING.findall(line)
    return "".join(_ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), string) for string in strings)
