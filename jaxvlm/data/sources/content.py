"""What formats read from a dictionary, and how they read its columns."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxvlm.data.records import Turn
from jaxvlm.data.sources.values import Problems, kind
from jaxvlm.media import Video

ANY = "any"  # in place of the name of an image or a video column: one of `IMAGE_KEYS` or `VIDEO_KEYS`


@dataclasses.dataclass
class Content:
    """What a format reads from an item: its turns, the rejected answer of a pair, and media inside of turns."""

    turns: list[Turn]
    rejected: str = ""
    images: list[str | bytes] = dataclasses.field(default_factory=list)
    videos: list[Video] = dataclasses.field(default_factory=list)
    unread: list[str] = dataclasses.field(default_factory=list)  # keys of turns


MISSING: Any = object()


def named(*columns: str | None) -> list[str]:
    """The columns that are named, without `ANY`."""
    return [column for column in columns if column and column != ANY]


def read_column(item: dict[str, Any], column: str, problems: Problems) -> Any:
    """The value of a column; `MISSING`, and a problem, where it has none."""
    if column not in item:
        problems.append(("missing_key", f'the key "{column}" is missing ({found_keys(item)})'))
        return MISSING
    return item[column]


def found_keys(item: dict[str, Any]) -> str:
    """The keys of an item, for messages."""
    names = ", ".join(repr(str(key))[1:-1] for key in item) or "none"
    return f"keys found: {names if len(names) <= 200 else names[:197] + '...'}"


def read_text(item: dict[str, Any], column: str, problems: Problems) -> str:
    """A text that may be absent."""
    text = item.get(column)
    if text is not None and not isinstance(text, str):
        problems.append(("wrong_type", f'"{column}" is a string, found {kind(text)}'))
        return ""
    return text or ""


def read_system(item: dict[str, Any], column: str, problems: Problems) -> list[Turn]:
    """The system message in a column, as a turn; [] where there is none."""
    text = read_text(item, column, problems)
    return [Turn("system", text)] if text else []
