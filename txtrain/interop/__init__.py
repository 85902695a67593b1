"""Models of other makers: Hugging Face folders in and out, and adapters in PEFT's."""

from pathlib import Path

from txtrain.interop import adapted, folder, peft_config
from txtrain.interop.folder import Imported

__all__ = ["Imported", "is_folder", "read_folder"]


def is_folder(path: str | Path) -> bool:
    """Whether this is a Hugging Face model folder, or an adapter's folder of PEFT's."""
    return folder.is_folder(path) or peft_config.is_adapter(path)


def read_folder(path: str | Path) -> Imported:
    """Understands a folder; an adapter is merged into its base when weights are read.

    Raises:
        UserError: it is none, or something in it has no counterpart.
    """
    return adapted.read_adapted(path) if peft_config.is_adapter(path) else folder.read_folder(path)
