"""Translations out of the gettext catalogues of installed packages: real ones on every machine, with no network."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from txtrain.data.parallel import Pair
from txtrain.data.po import plain, read_messages
from txtrain.data.translation import TranslationData
from txtrain.errors import UserError


class Catalogues(TranslationData):
    """English and another language, as the people who translated Django and Plone wrote it.

    Args:
        language: of the targets, as the packages' folders name it, such as `de`, `fr`, `pt_BR`.
        packages: those whose catalogues are read; they need not be imported for it.
        base: as in `TranslationData`.
    """

    def __init__(
        self, *, language: str = "de", packages: Sequence[str] = ("django", "plone.app.locales"), **base: Any
    ) -> None:
        super().__init__(**base)
        self.language, self.packages = language, list(packages)

    def identity(self) -> Any:
        return [self.language, [(name, _distribution(name).version) for name in self.packages]]

    def pairs(self) -> Iterator[Pair]:
        """Each message once that is plain language, with each translation that it has."""
        seen = set()
        for file in self._files():
            with file.open(encoding="utf-8") as lines:
                messages = [message for found in read_messages(lines) if (message := plain(found))]
            for source, target, line in messages:
                if (source, target) not in seen:
                    seen.add((source, target))
                    yield Pair(source, target, f"{file} line {line}")

    def _files(self) -> list[Path]:
        found: list[Path] = []
        languages = set()
        for name in self.packages:
            distribution = _distribution(name)
            for path in distribution.files or ():
                if path.suffix == ".po" and len(path.parts) > 2 and path.parts[-2] == "LC_MESSAGES":
                    languages.add(path.parts[-3])
                    if path.parts[-3] == self.language:
                        found.append(Path(str(distribution.locate_file(path))))
        if not found:
            known = ", ".join(sorted(languages)) or "none at all"
            raise UserError(
                f"data.language={self.language} has no catalogue in {', '.join(self.packages)}: set data.language to "
                f"one of {known}"
            )
        return sorted(found)

    def _named(self) -> str:
        return f"data.language={self.language}"


def _distribution(name: str) -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"data=catalogues reads the catalogues of the package {name}, which is not installed: "
            "pip install 'txtrain[tasks]'"
        ) from None
