"""Metadata of a GGUF file, llama.cpp's format, needed for its weights and its tokenizer.

Source: docs/gguf.md of ggml.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from jaxvlm.errors import UserError, missing_extra


class Metadata:
    """Keys and values of an open file."""

    def __init__(self, path: Path, reader: Any):
        self.path, self.reader = path, reader  # of gguf.GGUFReader

    def value(self, key: str, default: Any = None, *, required: bool = True) -> Any:
        """The value of a key, or the default.

        Raises:
          UserError: it is absent, required and without a default.
        """
        field = self.reader.get_field(key)
        if field is not None:
            return field.contents()
        if default is None and required:
            raise UserError(f"{self.path} has no metadata {key}")
        return default

    def number(self, key: str, default: float | None = None) -> Any:
        """The value of a key that is one number.

        Raises:
          UserError: it is absent without a default, or not a number.
        """
        value = self.value(key, default)
        if isinstance(value, (int, float)):
            return value
        raise UserError(f"{self.path}: {key} = {value!r}, expected one number for all blocks")


# Files that are in use, by path, size and time of the last change: weights and tokenizer need the same values.
_IN_USE: weakref.WeakValueDictionary[tuple[Path, int, int], Metadata] = weakref.WeakValueDictionary()


def read_metadata(path: Path) -> Metadata:
    """Opens a file; takes seconds, for the vocabulary, unless it is in use already.

    Raises:
      UserError: the package gguf is missing, or the file is absent or not GGUF.
    """
    try:
        import gguf
    except ImportError as error:
        raise missing_extra(f"reading {path}", "gguf", "gguf") from error
    if not path.is_file():
        raise UserError(f"{path} is not a file; expected a .gguf")
    status = path.stat()
    key = path.resolve(), status.st_size, status.st_mtime_ns
    if (known := _IN_USE.get(key)) is not None:
        return known
    try:
        metadata = _IN_USE[key] = Metadata(path, gguf.GGUFReader(path))
    except (
        ValueError,
        KeyError,
        IndexError,
    ) as error:  # raised by NumPy and the reader for a corrupt or truncated file
        raise UserError(f"{path} cannot be read as GGUF ({error}); is the download complete?") from error
    return metadata
