"""Gettext catalogues: read as gettext itself reads them, and cleaned of what is no plain language."""

import gettext
import importlib.metadata
from pathlib import Path

import pytest

from txtrain.data.po import Message, plain, read_messages


def catalogues(package: str, language: str) -> list[Path]:
    distribution = importlib.metadata.distribution(package)
    found = [Path(str(distribution.locate_file(path))) for path in distribution.files or ()]
    return [path for path in found if path.suffix == ".po" and path.parts[-3:-1] == (language, "LC_MESSAGES")]


@pytest.mark.parametrize("language", ["de", "fr", "pl", "ja"])
def test_messages_are_those_of_the_compiled_catalogue(language: str) -> None:
    """Django's msgids are the English texts; its .mo files were written by GNU's msgfmt."""
    count = 0
    for file in catalogues("django", language):
        with file.with_suffix(".mo").open("rb") as stream:
            compiled = gettext.GNUTranslations(stream)._catalog
        translations = {}  # a plural is a pair of message and form
        for key, text in compiled.items():
            message = key[0] if isinstance(key, tuple) else key
            translations.setdefault(message.rpartition("\4")[2], set()).add(text)
        with file.open(encoding="utf-8") as lines:
            found = list(read_messages(lines))
        every = set().union(*translations.values())
        for message in found:
            assert message.target in translations.get(message.source, every), (file, message)
        assert {message.target for message in found} <= every
        if language != "ja":  # it has one form, which is the plural's
            assert {source for source in translations if source} <= {message.source for message in found}
        count += len(found)
    assert count > 400


ENTRIES = r"""
msgid ""
msgstr "Language: de\n"

#. Default: "Add \"${title}\""
#: browser/add.pt:12
msgid "label_add"
msgstr "\"${title}\" hinzufügen"

#, fuzzy
msgid "Guess"
msgstr "Rate"

msgid ""
"One "
"line"
msgstr ""
"Eine "
"Zeile"

msgid "day"
msgid_plural "days"
msgstr[0] "Tag"
msgstr[1] "Tage"

#~ msgid "Old"
#~ msgstr "Alt"

msgid "Not yet"
msgstr ""
"""


def test_an_entry_of_each_kind() -> None:
    found = list(read_messages(ENTRIES.split("\n")))
    assert [message[:2] for message in found] == [
        ('Add "${title}"', '"${title}" hinzufügen'),
        ("One line", "Eine Zeile"),
        ("day", "Tag"),
        ("days", "Tage"),
    ]
    assert [message.line for message in found] == [7, 14, 21, 21]


def test_a_language_with_one_form_has_the_plural_only() -> None:
    lines = ['msgid "day"', 'msgid_plural "days"', 'msgstr[0] "日"']
    assert [message[:2] for message in read_messages(lines)] == [("days", "日")]


CLEANED = {
    ("Read the <a href='x'>docs</a> &amp;\n go", "Lies die <b>Doku</b> &amp; los"): (
        "Read the docs & go",
        "Lies die Doku & los",
    ),
    ("a < b and b > c", "a < b und b > c"): ("a < b and b > c", "a < b und b > c"),
}
DROPPED = [
    ("Delete %(name)s", "%(name)s löschen"),
    ("%d items", "%d Einträge"),
    ("Hello ${name}", "Hallo ${name}"),
    ("$h hours", "$h Stunden"),
    ("{count} new", "{count} neu"),
    ("Caught &e at &c", "Fing &e bei &c"),
    ("long_date_format", "%d.%m.%Y"),
    ("label_add", "Hinzufügen"),
    ("Plone", "Plone"),
    ("123", "321"),
]


@pytest.mark.parametrize("given", CLEANED)
def test_markup_goes_and_the_text_stays(given: tuple[str, str]) -> None:
    assert plain(Message(*given, 1)) == Message(*CLEANED[given], 1)


@pytest.mark.parametrize("given", DROPPED)
def test_what_is_no_plain_language_is_left_out(given: tuple[str, str]) -> None:
    assert plain(Message(*given, 1)) is None
