"""Translations out of the gettext catalogues of installed packages: real ones on every machine, with no network."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from txtrain.data.base import check_least
from txtrain.data.parallel import Pair
from txtrain.data.po import plain, read_messages
from txtrain.data.translation import TranslationData
from txtrain.errors import UserError


class Catalogues(TranslationData):
    """English and another language, as the people who translated Django and Plone wrote it.

    Args:
        language: of the targets, as the packages' folders name it, such as `de`, `fr`, `pt_BR`.
        also: languages of the packages whose pairs are trained on too, with the language before each source.
        repeat: how often an epoch has the pairs of `language`, for one time that it has those of `also`.
        packages: those whose catalogues are read; they need not be imported for it.
        base: as in `TranslationData`.
    """

    def __init__(
        self,
        *,
        language: str = "de",
        also: Sequence[str] = (),
        repeat: int = 1,
        packages: Sequence[str] = ("django", "plone.app.locales"),
        **base: Any,
    ) -> None:
        super().__init__(**base)
        check_least({"repeat": repeat}, least=1)
        self.language, self.also, self.repeat, self.packages = language, list(also), repeat, list(packages)
        if repeat > 1 and not (also or self.with_memory):
            raise UserError(
                f"data.repeat={repeat} is for data.also or data.memory=true: set one of them, or leave it out"
            )
        if len({language, *also}) <= len(self.also):
            raise UserError(f"data.also has {language} or another language twice: name each once")

    def identity(self) -> Any:
        told = [self.language, [(name, _distribution(name).version) for name in self.packages]]
        return [*told, self.also, self.repeat] if self.also or self.repeat > 1 else told

    def pairs(self) -> Iterator[Pair]:
        return self._pairs(self.language)

    def others(self) -> dict[str, list[Pair]]:
        return {language: list(self._pairs(language)) for language in self.also}

    def _pairs(self, language: str) -> Iterator[Pair]:
        """Each message once that is plain language, with each translation that it has."""
        seen = set()
        for file in self._files(language):
            with file.open(encoding="utf-8") as lines:
                messages = [message for found in read_messages(lines) if (message := plain(found))]
            for source, target, line in messages:
                if (source, target) not in seen:
                    seen.add((source, target))
                    yield Pair(source, target, f"{file} line {line}")

    def _files(self, language: str) -> list[Path]:
        found: list[Path] = []
        languages = set()
        for name in self.packages:
            distribution = _distribution(name)
            for path in distribution.files or ():
                if path.suffix == ".po" and len(path.parts) > 2 and path.parts[-2] == "LC_MESSAGES":
                    languages.add(path.parts[-3])
                    if path.parts[-3] == language:
                        found.append(Path(str(distribution.locate_file(path))))
        if not found:
            known = ", ".join(sorted(languages)) or "none at all"
            raise UserError(
                f"data.{'also' if language in self.also else 'language'}={language} has no catalogue in "
                f"{', '.join(self.packages)}: set it to one of {known}"
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
