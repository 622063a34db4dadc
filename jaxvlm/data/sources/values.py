"""Values of records in messages."""

from __future__ import annotations

import json
from typing import Any

Problems = list[tuple[str, str]]  # (reason, what is wrong)


def kind(value: Any) -> str:
    """The type of a value and the value, for messages: 'a string ("x")'."""
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        type(None): "null",
        bool: "true or false",
        bytes: "bytes",
    }
    return f"{names.get(type(value), 'a number')} ({short(value)})"


def short(value: Any) -> str:
    """A value as JSON, cut to 60 characters."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, str) and len(value) > 200:  # not to write a picture in base64 out first
        value = value[:200]
    try:
        text = json.dumps(value, default=repr)
    except (TypeError, ValueError, RecursionError):  # keys that are no strings, a number of 5,000 digits, deep nesting
        text = "..."
    return text if len(text) <= 60 else text[:57] + "..."
