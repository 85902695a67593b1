"""One tokenizer for several data sets: it learns from the training texts of all of them."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from itertools import zip_longest
from pathlib import Path

import tokenizers

from txtrain.data import cache
from txtrain.data.base import Data
from txtrain.data.tokenizer import TARGET_FILE, Pretrained, Tokenizer
from txtrain.errors import UserError


class Heard(Exception):
    """A data set has shown what a tokenizer is to learn from, and now wants to use it."""


class Listener(Tokenizer):
    """Stands where a data set has its tokenizer and keeps what that would learn from.

    A data set makes tokenizer and samples in one go. This one ends that with `Heard` as soon as it is to be used.

    Args:
        tokenizer: that is to learn.
        share: of what it wants to see.
    """

    def __init__(self, tokenizer: Tokenizer, share: float) -> None:
        super().__init__()
        self.tokenizer, self.share = tokenizer, share
        self.sample_characters = tokenizer.sample_characters
        self.texts: list[str] | None = None
        self.targets: Listener | None = None

    def fit(self, texts: Iterable[str]) -> None:
        self.texts = self.tokenizer.excerpt(texts, self.share)

    def fingerprint(self) -> str:
        return "listener"

    @property
    def core(self) -> tokenizers.Tokenizer:
        raise Heard

    def twin(self) -> "Listener":
        self.targets = Listener(self.tokenizer.twin(), self.share)
        return self.targets


def learn(
    tokenizer: Tokenizer,
    sets: Mapping[str, Data],
    listeners: Mapping[str, Listener],
    telling: Callable[[str], AbstractContextManager[None]],
    cache_dir: Path,
) -> Path:
    """The folder of a tokenizer that has learned from several data sets; with `vocabulary=separate` of two.

    Args:
        tokenizer: how it learns.
        sets: made with these listeners as their tokenizers.
        listeners: by the names of the sets.
        telling: around what may go wrong in a set.
        cache_dir: where it is kept.
    """

    def write(folder: Path) -> None:
        for name, data in sets.items():
            with telling(name), suppress(Heard):
                data.prepare()
            assert listeners[name].texts is not None, f"the data set {name} has not asked for its tokenizer"
        heard = list(listeners.values())
        _fit(tokenizer, heard).save(folder / "tokenizer.json")
        targets = [listener.targets for listener in heard if listener.targets is not None]
        if targets:
            _fit(targets[0].tokenizer, targets).save(folder / TARGET_FILE)

    texts = []
    for name, data in sets.items():
        with telling(name):
            texts.append([name, data.fingerprint(), listeners[name].share])
    roles = sorted({role for listener in listeners.values() for role in listener.roles})
    found = cache.fingerprint(learns=tokenizer.fingerprint(), roles=roles, texts=texts)
    return cache.entry(cache_dir, found, write, _check)


def learned(folder: Path) -> Pretrained:
    """What `learn` has made."""
    return Pretrained(path=str(folder))


def _check(folder: Path) -> None:
    for name in ("tokenizer.json", TARGET_FILE):
        if name != TARGET_FILE or (folder / name).exists():
            tokenizers.Tokenizer.from_file(str(folder / name))


def _fit(tokenizer: Tokenizer, listeners: Iterable[Listener]) -> Tokenizer:
    """Learns from all that was heard, text by text from each in turn, so that none comes first as a whole."""
    heard = [listener.texts or [] for listener in listeners]
    for listener in listeners:
        tokenizer.need(*listener.roles)
    texts = [text for turn in zip_longest(*heard) for text in turn if text is not None]
    if not any(texts):
        raise UserError("no data set of the mixture has text for a tokenizer to learn from: give some")
    tokenizer.fit(texts)
    return tokenizer
