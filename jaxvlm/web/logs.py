"""A piece of a log, and the places where a text stands in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jaxvlm.web.texts import plain

_SEARCHED = 2**26  # bytes from the end
_MOST_MATCHES = 500
_LINE = 300  # characters of a match that are shown


def read_log(path: Path, end: int | None, most: int) -> dict[str, Any]:
    """A piece of a log as text: {text, start, end, size}, with places in bytes. It starts and ends with a line.

    Args:
      end: where the piece ends; None: at the end of the file.
      most: bytes.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            stop = size if end is None else min(end, size)
            start = max(0, stop - most)
            file.seek(start)
            content = file.read(stop - start)
    except OSError:
        return {"text": "", "start": 0, "end": 0, "size": 0}
    skipped = content.find(b"\n") + 1 if start else 0
    return {"text": plain(content[skipped:]), "start": start + skipped, "end": stop, "size": size}


def search_log(path: Path, text: str) -> list[dict[str, Any]]:
    """Lines that contain a text, in either case: [{offset, line}], at most the last 500; `offset` is in bytes."""
    wanted = text.casefold()
    if not wanted:
        return []
    found: list[dict[str, Any]] = []
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            offset = max(0, size - _SEARCHED)
            file.seek(offset)
            for line in file:
                if wanted in (shown := plain(line)).casefold():
                    found.append({"offset": offset, "line": shown.strip("\n")[:_LINE]})
                offset += len(line)
    except OSError:
        return []
    return found[-_MOST_MATCHES:]
