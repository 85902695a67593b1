"""Small files that are read back from a run or a folder: anybody may have written them, so each has a schema.

What is no such file, cannot be parsed, or is of other types than its schema ends in one line that names the file.
"""

import json
import stat
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from txtrain.errors import UserError
from txtrain.trust import renamed

T = TypeVar("T")
R = TypeVar("R", bound="Record")

RESTORE = "restore it or name another run"
LARGEST = 2**28  # bytes
MOST_VALUES, DEEPEST = 100_000, 50  # of a config

# Whatever a size of a model may be; beyond it no arithmetic on shapes is safe.
Size = Annotated[int, Field(ge=1, le=2**31)]


class Record(BaseModel):
    """An object in a file. Keys that a schema does not name are left alone."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)


class DataRecord(Record):
    """data.json: what a run wrote down of its data.

    Attributes:
        fingerprint: of the data, which is also the name of their folder in the cache.
        samples: to train on.
        sizes: what they gave the model; runs of old versions have none.
    """

    fingerprint: str = Field(pattern=r"^[\w-]+$")
    samples: int = Field(ge=0)
    sizes: dict[str, Size] | None = None


class SummaryRecord(Record):
    """summary.json: the outcome of a run."""

    state: str | None = None
    steps: int | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None
    peak_memory_bytes: float | None = None
    trainable_parameters: float | None = None


class PartRecord(Record):
    """A file of a checkpoint, which lies in its folder."""

    name: str = Field(pattern=r"^[\w.-]*\w$")
    bytes: int = Field(ge=0)
    sha256: str


class ManifestRecord(Record):
    """manifest.json: what a checkpoint says of itself."""

    format: int
    step: int = Field(ge=0)
    ranks: int = 1
    strategy: str = ""
    files: list[PartRecord]


class RowRecord(Record):
    """A row of metrics.jsonl."""

    step: int | float


class JobRecord(BaseModel):
    """A job in the jobs.json of a sweep."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    overrides: dict[str, str]
    state: str
    slurm: str | None = Field(default=None, pattern=r"^[\w.+-]+$")


LABELS = TypeAdapter(Annotated[list[str], Field(min_length=1)])
JOBS = TypeAdapter(list[JobRecord])

# Groups that every run has had since its config was first written, and keys of them that are read by their names.
GROUPS = (
    *("task", "data", "tokenizer", "model", "embedding", "head", "encoding", "norm", "attention", "ffn"),
    *("checkpointing", "lora", "optimizer", "schedule", "loss", "samples", "save", "strategy", "logger", "trainer"),
)
KEYS = {
    "lora": ("rank",),
    "model": ("dim", "num_layers", "num_heads"),
    "trainer": (
        *("max_steps", "max_epochs", "accelerator", "devices", "num_nodes", "precision", "gradient_clip_val"),
        *("log_every_n_steps", "val_check_interval", "limit_val_batches"),
    ),
}


class Unreadable(UserError):
    """A file that is not as its kind is.

    Attributes:
        reason: why, without the file's name and what to do.
    """

    def __init__(self, path: Path, reason: str, do: str) -> None:
        super().__init__(f"{path} cannot be read ({reason}): {do}")
        self.reason = reason


def read_bytes(path: Path, *, do: str = RESTORE) -> bytes:
    """The content of a file.

    Raises:
        Unreadable: there is none, it is no file of its own, or it may not be read.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a named pipe would be waited for
            raise Unreadable(path, "it is a folder" if stat.S_ISDIR(found.st_mode) else "it is no regular file", do)
        return path.read_bytes()
    except OSError as error:
        raise Unreadable(path, error.strerror or str(error), do) from error


def read_text(path: Path, *, do: str = RESTORE) -> str:
    """The text of a small file.

    Raises:
        Unreadable: there is none, it is no file of its own, or it is larger than any of its kind.
    """
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise Unreadable(path, f"it has {size} bytes", do)
        return read_bytes(path, do=do).decode()
    except OSError as error:
        raise Unreadable(path, error.strerror or str(error), do) from error
    except ValueError as error:
        raise Unreadable(path, f"it is no text: {error}", do) from error


def read_json(path: Path, *, do: str = RESTORE) -> Any:
    """What a JSON file says, of any type."""
    try:
        return json.loads(read_text(path, do=do))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else f"it is not JSON: {error}"
        raise Unreadable(path, reason, do) from error


def read_object(path: Path, *, do: str = RESTORE) -> dict[str, Any]:
    """The object in a JSON file."""
    return checked(path, read_json(path, do=do), _any_object(), do=do)


def read_record(path: Path, schema: type[R], *, do: str = RESTORE) -> R:
    """The object in a JSON file, which has a schema."""
    return checked(path, read_json(path, do=do), TypeAdapter(schema), do=do)


def checked(path: Path, value: Any, schema: TypeAdapter[T], *, do: str = RESTORE) -> T:
    """A value out of a file, if it is as its schema says."""
    try:
        return schema.validate_python(value, strict=True)
    except ValidationError as error:
        raise Unreadable(path, what_is_wrong(error), do) from error


def what_is_wrong(error: ValidationError) -> str:
    """The first thing that does not fit a schema, in a few words."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    got = "" if first["type"] == "missing" else f", got {_shown(first['input'])}"
    return f"{f'{where}: ' if where else ''}{first['msg']}{got}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."


@cache
def _any_object() -> TypeAdapter[dict[str, Any]]:
    return TypeAdapter(dict[str, Any])


def read_config(path: Path) -> dict[str, Any]:
    """The config.yaml of a run as plain values, its classes by their present names.

    Raises:
        UserError: it is no config that a run has written.
    """
    text = read_text(path)
    try:
        content = yaml.load(text, Loader=_yaml_loader())
        count = sum(1 for _ in _values(content))
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read ({reason}): {RESTORE}") from error
    if count == 1 or not isinstance(content, dict):
        raise UserError(f"{path} cannot be read (it is no config but {_shown(content)}): {RESTORE}")
    config: dict[str, Any] = renamed(content)
    for group, known in tree_keys().items():
        node = config.get(group)
        if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
            raise UserError(f"{path} cannot be read ({group} is no group with a class): {RESTORE}")
        if missing := [key for key in KEYS.get(group, ()) if key in known and key not in node]:
            raise UserError(f"{path} cannot be read ({group}.{missing[0]} is missing): {RESTORE}")
    if not isinstance(config.get("name"), str) or type(config.get("seed")) is not int:
        raise UserError(f"{path} cannot be read (name is no text, or seed no number): {RESTORE}")
    return config


@cache
def tree_keys() -> dict[str, set[str]]:
    """The groups among `GROUPS` that the config tree has, with all keys of their options."""
    from txtrain.config import config_directory  # which imports this module

    return {
        group: {
            line.partition(":")[0]
            for file in (config_directory() / group).glob("*.yaml")
            for line in file.read_text(encoding="utf-8").replace("{", "\n").replace(", ", "\n").splitlines()
        }
        for group in GROUPS
        if (config_directory() / group).is_dir()
    }


def _yaml_loader() -> Any:
    """OmegaConf's, which reads 1e-4 as a number and makes no objects."""
    from omegaconf._utils import get_yaml_loader

    return get_yaml_loader()


def _values(config: Any, depth: int = 0, count: list[int] | None = None) -> Iterator[Any]:
    """Every value of a config, which an alias may hold more than once.

    Raises:
        ValueError: it has more than any config, or is nested deeper, or has a key or value that no config has.
    """
    count = [0] if count is None else count
    count[0] += 1
    if count[0] > MOST_VALUES or depth > DEEPEST:
        raise ValueError("it is too large for a config")
    yield config
    if isinstance(config, Mapping):
        for key, value in config.items():
            if not isinstance(key, str | int):
                raise ValueError(f"it has a key {_shown(key)}")
            yield from _values(value, depth + 1, count)
    elif isinstance(config, list):
        for value in config:
            yield from _values(value, depth + 1, count)
    elif not isinstance(config, str | int | float | bool | None) or config == "???":
        raise ValueError(f"it has a value {_shown(config)}")
