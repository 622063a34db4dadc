"""Reads files that others write at the same time, or that are broken: what cannot be read is None."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

_LARGEST = 2**24  # bytes of a JSON file of a run, but its results
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")


def read_json(path: Path, largest: int = _LARGEST) -> dict[str, Any] | None:
    """The object in a JSON file; None if it is missing, damaged, larger than `largest` bytes, or no object."""
    try:
        if not path.is_file() or path.stat().st_size > largest:
            return None
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def as_number(value: Any) -> float | int | None:
    """A finite number; None for anything else."""
    return value if type(value) in (int, float) and math.isfinite(value) else None


def without_nonfinite(value: Any) -> Any:
    """The same value with null for NaN and infinities, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nonfinite(item) for item in value]
    return value


def plain(content: bytes) -> str:
    """Output of a command as text: without escape sequences, and of a line that was rewritten its newest form."""
    text = _ESCAPES.sub("", content.decode("utf-8", "replace")).replace("\r\n", "\n")
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))


def read_tail(path: Path, most: int) -> str:
    """The last `most` bytes of a log as text, from the beginning of a line; "" if there is no file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - most))
            content = file.read(most)
    except OSError:
        return ""
    if size > most and b"\n" in content:
        content = content[content.index(b"\n") + 1 :]
    return plain(content)
