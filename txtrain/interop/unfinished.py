"""A folder that appears under its name only when it is whole."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from txtrain.errors import UserError
from txtrain.saving import PARTIAL


@contextmanager
def unfinished(folder: Path) -> Iterator[Path]:
    """A path beside a folder to write it to; the folder gets its name afterwards, and nothing stays after an error.

    The path is in a directory of a random name that this makes, so nothing of anybody else's is ever removed.

    Args:
        folder: that must not exist yet.

    Raises:
        UserError: it cannot be written.
    """
    own = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}{PARTIAL}")
    try:
        own.mkdir(parents=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        yield own / folder.name
        (own / folder.name).rename(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder} cannot be written ({error.strerror or error}): name another folder")
