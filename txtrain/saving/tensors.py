"""Tensors written to a safetensors file, which others may read as they may any other file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors by name; the file's mode follows the umask, where the library's own is 0600.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    path.touch()  # asking for the umask would change it for other threads
    mode = path.stat().st_mode
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)
