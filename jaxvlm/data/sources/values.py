"""Values of records in messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from jaxvlm.data.records import IMAGE, VIDEO

Problems = list[tuple[str, str]]  # (reason, what is wrong)


# Placeholders of media that other trainers read; "<image>" is ours, and "<video>" in a record that has a video.
_FOREIGN = re.compile(
    r"<(?:video|audio|Image|ImageHere)>|<\|(?:image|video|audio|image_pad|video_pad)\|>|\[IMG\]"
    r"|<(?:image|Image)[ _-]?\d+>|<img>[^<\n]*</img>"
)


def foreign_placeholders(questions: Iterable[str], *, videos: bool) -> set[str]:
    """A note for each kind of placeholder in questions that is text here, and stands for nothing.

    Args:
      videos: whether the record has a video, so that `VIDEO` stands for one.
    """
    found = {match for text in questions for match in _FOREIGN.findall(text)}
    general = {re.sub(r"\d+>", "N>", re.sub("<img>.*</img>", "<img>...</img>", match)) for match in found}
    notes = {f'"{match}" in a question is text and stands for nothing; ': match for match in general}
    others = {f"{note}{IMAGE} stands for an image" for note, match in notes.items() if match != VIDEO}
    return others | {f"{note}the record has no video" for note, match in notes.items() if match == VIDEO and not videos}


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
