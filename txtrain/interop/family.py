"""What a family of models is: how its config.json and its names of weights stand for our axes and ours.

A family is a list of parts, each of which reads some keys of config.json and writes them back. Whether a model of ours
belongs to a family is not programmed anywhere: its config is written, read again, and compared.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal

from txtrain.errors import UserError
from txtrain.interop.axes import Flat, Nodes, differences, to_flat, to_nodes, typed
from txtrain.interop.keys import Config, Keys
from txtrain.interop.names import Names, Rule
from txtrain.model import Decoder, EncoderDecoder

log = logging.getLogger(__name__)

REQUIRED = object()


def look_up(config: Config, key: str, default: Any = REQUIRED) -> Any:
    """A value of config.json; dots lead into what is nested.

    Raises:
        UserError: it is missing and has no default.
    """
    value: Any = config
    for name in key.split("."):
        if not isinstance(value, Mapping) or name not in value:
            if default is REQUIRED:
                raise UserError(f"its config.json has no {key}")
            return default
        value = value[name]
    return value


class Part(ABC):
    """Some keys of config.json and what they say of the axes."""

    @abstractmethod
    def read(self, config: Config) -> Flat:
        """What the keys say.

        Raises:
            UserError: something that the axes cannot express.
        """

    @abstractmethod
    def write(self, flat: Flat) -> dict[str, Any]:
        """The keys that say so, as far as they can; keys with dots are nested."""


@dataclass(frozen=True)
class Field(Part):
    """One key for one value.

    Args:
        ours: such as `model.dim`, or a group, whose option it then chooses.
        theirs: the key in config.json.
        default: what the family means if the key is missing; needed if there is none.
        values: our value for each of theirs; the first of several that mean the same is written.
        to_ours, to_theirs: functions instead, for values that are not null.
    """

    ours: str
    theirs: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] | None = None
    to_ours: Callable[[Any], Any] = field(default=lambda value: value)
    to_theirs: Callable[[Any], Any] = field(default=lambda value: value)

    def read(self, config: Config) -> Flat:
        value = look_up(config, self.theirs, self.default)
        if self.values is not None:
            if value not in self.values:
                known = ", ".join(str(known) for known in self.values)
                raise UserError(f"its {self.theirs} is {value}, and txtrain knows {known}")
            return {self.ours: self.values[value]}
        return {self.ours: None if value is None else self.to_ours(value)}

    def write(self, flat: Flat) -> dict[str, Any]:
        value = flat.get(self.ours)
        if self.values is not None:
            found = [theirs for theirs, ours in self.values.items() if ours == value]
            return {self.theirs: found[0]} if found else {}
        return {self.theirs: None if value is None else self.to_theirs(value)}


@dataclass(frozen=True)
class Same(Part):
    """One key for several values of ours, which are the same."""

    ours: tuple[str, ...]
    theirs: str
    default: Any = REQUIRED

    def read(self, config: Config) -> Flat:
        return dict.fromkeys(self.ours, look_up(config, self.theirs, self.default))

    def write(self, flat: Flat) -> dict[str, Any]:
        return {self.theirs: flat.get(self.ours[0])}


@dataclass(frozen=True)
class Choice(Part):
    """One key for several values of ours together, for each of its values; the first is its default."""

    theirs: str
    flats: Mapping[Any, Flat]

    def read(self, config: Config) -> Flat:
        value = look_up(config, self.theirs, next(iter(self.flats)))
        if value not in self.flats:
            raise UserError(f"its {self.theirs} is {value}, and txtrain knows {', '.join(map(str, self.flats))}")
        return dict(self.flats[value])

    def write(self, flat: Flat) -> dict[str, Any]:
        found = [value for value, ours in self.flats.items() if not differences(ours, flat)]
        return {self.theirs: found[0]} if found else {}


@dataclass(frozen=True)
class Always(Part):
    """What is so in every model of the family."""

    flat: Mapping[str, Any]

    def read(self, config: Config) -> Flat:
        return dict(self.flat)

    def write(self, flat: Flat) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Only(Part):
    """A key of which we can express some values, the first of which is what it means if it is missing."""

    theirs: str
    values: tuple[Any, ...] = (False, None)

    def read(self, config: Config) -> Flat:
        value = look_up(config, self.theirs, self.values[0])
        if value not in self.values:
            raise UserError(f"its {self.theirs} is {value}, which no axis expresses (only {self.values[0]})")
        return {}

    def write(self, flat: Flat) -> dict[str, Any]:
        return {self.theirs: self.values[0]}


class Family:
    """A family: what is said of it, in tables.

    Attributes:
        model_types: `model_type` in config.json; the first is written.
        architecture: the class of `transformers` with the head that we have.
        keys: of its config.json, with their defaults.
        parts: all of config.json that decides what is computed.
        rules: where our weights are.
        prefix: before all names but the head's; some files leave it out.
        ignored: pattern of names in files that are no weights of the model.
        max_len: the key of the longest sequence; None if there is none.
        model_class: what makes the model of the axes.
        reads: what the model reads.
    """

    model_types: ClassVar[tuple[str, ...]]
    architecture: ClassVar[str]
    keys: ClassVar[Keys]
    parts: ClassVar[tuple[Part, ...]]
    rules: ClassVar[tuple[Rule, ...]]
    prefix: ClassVar[str] = "model."
    ignored: ClassVar[str] = r".*rotary_emb\.inv_freq"
    max_len: ClassVar[str | None] = "max_position_embeddings"
    model_class: ClassVar[type] = Decoder
    reads: ClassVar[Literal["tokens", "images", "sound"]] = "tokens"

    @property
    def names(self) -> Names:
        return Names(self.rules)

    def axes(self, config: Config) -> Nodes:
        """Our config nodes for a config.json.

        Raises:
            UserError: something in it has no counterpart, or is missing.
        """
        config = self.complete(config)
        # transformers makes every mask bidirectional if this is false or null.
        if self.model_class in (Decoder, EncoderDecoder) and not config.get("is_causal", True):
            raise UserError("its is_causal is false, and the model is causal: leave it out")
        if config.get("per_layer_config"):
            raise UserError("its per_layer_config makes its layers differ, which no axis expresses")
        flat: Flat = {"model": "base", "embedding": "default", "head": "default", "attention": "full"}
        for part in self.parts:
            flat |= part.read(config)
        return to_nodes(flat)

    def complete(self, config: Config) -> dict[str, Any]:
        """A config.json with its keys under their main names, and what transformers means by those left out."""
        return self.keys.complete(config)

    def check(self, config: Config) -> None:
        """Checks a whole config.json, and warns of keys that change nothing here and in transformers.

        Raises:
            UserError: a key has a value of another kind than it should.
        """
        self.keys.check(config)
        if unknown := self.keys.unknown(config):
            _warn_of(self.model_types[0], tuple(unknown))

    def longest(self, config: Config) -> int:
        """The longest sequence that it was trained on."""
        return int(look_up(config, self.max_len)) if self.max_len else 2048

    def labels(self, config: Config) -> tuple[str, ...]:
        """Names of the labels that the head scores, if it scores labels."""
        return ()

    def sizes(self, config: Config) -> dict[str, int]:
        """Sizes of its input that are no axes: its data have them too."""
        return {}

    def config(self, axes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The part of config.json that says what is computed.

        Raises:
            UserError: an axis has no counterpart in this family.
        """
        wanted = to_flat(axes)
        config = self._written(wanted)
        missing = self._lacks(wanted, config)
        if missing:
            raise UserError(f"{self.model_types[0]} has no counterpart of {typed(missing, axes)}")
        return config

    def lacks(self, axes: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """What of the axes this family cannot express: nothing if it can be exported as one of it."""
        wanted = to_flat(axes)
        return self._lacks(wanted, self._written(wanted))

    def _written(self, flat: Flat) -> dict[str, Any]:
        written: dict[str, Any] = {"model_type": self.model_types[0], "architectures": [self.architecture]}
        for part in self.parts:
            for key, value in part.write(flat).items():
                *outer, last = key.split(".")
                node = written
                for name in outer:
                    node = node.setdefault(name, {})
                node[last] = value
        return written

    def _lacks(self, wanted: Flat, config: Config) -> dict[str, Any]:
        try:
            return differences(wanted, to_flat(self.axes(config)))
        except UserError:  # a value that even the key cannot take
            return {key: wanted[key] for key in sorted(wanted) if key in _values_of(self.parts, wanted)}


@cache
def _warn_of(kind: str, unknown: tuple[str, ...]) -> None:
    plural = "s" if len(unknown) > 1 else ""
    log.warning("config.json has key%s that no %s model reads, ignored: %s", plural, kind, ", ".join(unknown))


def _values_of(parts: Iterable[Part], flat: Flat) -> set[str]:
    """Keys whose values their part cannot write."""
    return {part.ours for part in parts if isinstance(part, Field) and part.values is not None and not part.write(flat)}
