"""Models of other makers: Hugging Face folders in and out."""

from txtrain.interop.folder import Imported, is_folder, read_folder

__all__ = ["Imported", "is_folder", "read_folder"]
