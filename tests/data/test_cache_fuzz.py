"""Files of the cache that are changed at random: an entry is made again, or one line says what is wrong."""

import json
import random
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.data.test_cache import KINDS, batches, content, entry_of, text
from txtrain.data import seal
from txtrain.errors import UserError

VALUES = [None, True, -1, 0, 10**12, 10**400, 1.5, float("nan"), "", "text", "\ud83d", [], [[]], {}, {"a": None}]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every value in a value is."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(value: Any, draw: random.Random) -> Any:
    """JSON with one value replaced or removed."""
    *path, last = draw.choice([place for place in places(value) if place] or [(0,)])
    inner = value
    for key in path:
        inner = inner[key]
    if draw.random() < 0.3:
        del inner[last]
    else:
        inner[last] = draw.choice(VALUES)
    return value


def mutated(name: str, held: bytes, draw: random.Random) -> bytes:
    """Another file than it was."""
    way = draw.choice(["bytes", "bytes", "cut", "grown", "form"])
    if way == "form" and name.endswith(".json"):
        value = json.loads(held)
        return json.dumps(changed(value, draw) if value else draw.choice(VALUES)).encode()
    if way == "form" and name.endswith(".npy"):
        shape = draw.choice([b"(99999999999,)", b"(-1,)", b"()", b"(2, 2)", b"None", b"(1,"])
        start = held.index(b"(", held.index(b"shape"))
        return held[:start] + shape + held[held.index(b")", start) + 1 :]
    if way == "cut":
        return held[: draw.randrange(len(held))]
    if way == "grown":
        return held + draw.randbytes(draw.randrange(1, 99))
    flipped = bytearray(held)
    for _ in range(draw.choice([1, 3, 100])):
        flipped[draw.randrange(len(held))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def use(made: Any) -> str:
    """Prepares and reads; the error, if there is one."""
    try:
        made.prepare()
        batches(made)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_changed_at_random(kind, sealed, tmp_path):
    draw = random.Random(f"{kind.__name__} {sealed}")
    made = kind(tmp_path)
    made.prepare()
    folder, whole = entry_of(made), content(entry_of(made))
    for _ in range(8 if sealed else 24):
        name = draw.choice([name for name in sorted(whole) if whole[name]])
        (folder / name).write_bytes(mutated(name, whole[name], draw))
        if not sealed:  # as entries were before there were seals
            (folder / seal.SEAL).unlink()
        assert "\n" not in use(kind(tmp_path))
        if sealed:
            assert content(folder) == whole
            continue
        shutil.rmtree(folder)  # what nobody can tell from right may have stayed
        for restored, held in whole.items():
            (folder / restored).parent.mkdir(parents=True, exist_ok=True)
            (folder / restored).write_bytes(held)
        seal.write_seal(folder)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", ["tokens.json", "tokenizer.json", "train.bin", "seal.json", "checked.json"])
def test_an_enormous_file(name, sealed, tmp_path):
    made = text(tmp_path)
    made.prepare()
    folder, whole = entry_of(made), content(entry_of(made))
    with (folder / name).open("r+b") as stream:
        stream.truncate(1 << 40)  # zeros that take no place on the disk
    if not sealed and name != seal.SEAL:
        (folder / seal.SEAL).unlink()
    text(tmp_path).prepare()
    assert content(folder) == whole


@pytest.mark.parametrize("what", ["file", "loop", "file above", "lock is a folder", "lock is a loop"])
def test_the_folder_of_the_cache_is_none(what, tmp_path):
    made = text(tmp_path)
    cache, lock = made.cache_dir, made.cache_dir / f"{made.fingerprint()}.lock"
    if what.startswith("lock"):
        cache.mkdir()
        lock.mkdir() if "folder" in what else lock.symlink_to(lock.name)
    elif what == "loop":
        cache.symlink_to(cache.name)
    elif what == "file":
        cache.write_text("")
    else:
        (tmp_path / "above").write_text("")
        made.cache_dir = tmp_path / "above" / "cache"
    with pytest.raises(UserError, match=r"data\.cache_dir=") as caught:
        made.prepare()
    assert "\n" not in str(caught.value)


def test_tokens_that_are_no_tokens_of_this_text_are_noticed_by_their_seal(tmp_path):
    made = text(tmp_path)
    made.prepare()
    folder, whole = entry_of(made), content(entry_of(made))
    ids = np.fromfile(folder / "train.bin", dtype=np.uint16)
    ids[::-1].tofile(folder / "train.bin")
    text(tmp_path).prepare()
    assert content(folder) == whole
