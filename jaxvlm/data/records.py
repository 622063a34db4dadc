"""The in-memory record: a conversation, its images and videos, and where it came from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from jaxvlm.errors import UserError
from jaxvlm.media import Medium, Video

IMAGE = "<image>"  # the placeholder of an image in a user turn
VIDEO = "<video>"  # the same of a video, in a record that has one; in others it is text, such as HTML's tag
_IMAGES = re.compile(f"({IMAGE})")
_IMAGES_AND_VIDEOS = re.compile(f"({IMAGE}|{VIDEO})")
# Stands in a user turn after the "<" of a spelling that is text. Unicode reserves this code point as a noncharacter.
_IS_TEXT = "\ufdd4"
_SPELLED = re.compile(f"<{_IS_TEXT}(?=image>|video>)")


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str  # "system", "user" or "assistant"
    text: str
    weight: float = 1.0  # of an answer in the loss; 0: not supervised


@dataclass(frozen=True)
class Record:
    """One conversation about its images."""

    id: str
    turns: tuple[Turn, ...]
    images: tuple[Medium, ...]  # images and videos; the k-th is that of the k-th placeholder of the user turns
    origin: str  # its place for messages, such as "file.json[12]"
    group: str = ""  # what evaluation groups by
    rejected: str = ""  # of a pair the rejected answer; the last turn is the chosen one
    continues: bool = False  # the text of a document that goes on in the next record: no end token follows
    notes: tuple[str, ...] = ()  # what was not read of it, such as 'key "score"', for `inspect_data check`


def sides(record: Record) -> tuple[Record, Record]:
    """The conversations of a pair: with the chosen answer, and with the rejected one in its place.

    Raises:
      RecordError: it is no pair, or its answers are the same.
    """
    chosen, rejected = record.turns[-1].text if record.turns else "", record.rejected
    if not rejected.strip():
        problem = "it has no rejected answer, and the objective of this stage learns from pairs"
        raise RecordError(f"{record.origin}: {problem}", record.origin, "no_rejected_answer")
    if chosen.strip() == rejected.strip():
        problem = "its chosen and its rejected answer are the same"
        raise RecordError(f"{record.origin}: {problem}", record.origin, "equal_answers")
    turns = (*record.turns[:-1], Turn(record.turns[-1].role, rejected))
    return record, replace(record, turns=turns)


class RecordError(UserError):
    """A record that breaks a rule.

    Attributes:
      origin: `Record.origin` of the record.
      reason: short name of the rule, under which the ledger counts it.
    """

    # Both have defaults because unpickling (errors of worker processes) calls the class with the message alone.
    def __init__(self, message: str, origin: str = "", reason: str = ""):
        super().__init__(message)
        self.origin = origin
        self.reason = reason


def placeholder_of(medium: Medium) -> str:
    """`IMAGE` or `VIDEO`."""
    return VIDEO if isinstance(medium, Video) else IMAGE


def split_media(text: str, *, videos: bool) -> list[str]:
    """Splits a text at placeholders and keeps them: ["Who?", "<image>", ""] of "Who?<image>".

    Args:
      videos: whether `VIDEO` is a placeholder, `has_videos` of the record.
    """
    return (_IMAGES_AND_VIDEOS if videos else _IMAGES).split(text)


def spelled(text: str) -> str:
    """The text of a user turn in which each `IMAGE` or `VIDEO` of `text` is no placeholder, but that text itself.

    It is for texts of unknown people. A record that is read from a file marks its images with placeholders.
    """
    return _IMAGES_AND_VIDEOS.sub(lambda found: f"<{_IS_TEXT}{found[0][1:]}", text)


def unspelled(text: str) -> str:
    """Undoes `spelled`: "<image>" of its result is not told from a placeholder any more."""
    return _SPELLED.sub("<", text)


def has_videos(media: Iterable[Medium]) -> bool:
    """Whether a video is among the media of a record, so that `VIDEO` is a placeholder."""
    return any(isinstance(medium, Video) for medium in media)


def placeholders(turns: Iterable[Turn], *, videos: bool) -> list[str]:
    """The placeholders of the user turns, in order."""
    return [found for turn in turns if turn.role == "user" for found in split_media(turn.text, videos=videos)[1::2]]


def part(record: Record, turns: tuple[Turn, ...], number: int, group: str = "") -> Record:
    """Part `number` of a record: these turns, with the images of their placeholders."""
    images = len(placeholders(turns, videos=has_videos(record.images)))
    return Record(f"{record.id}#{number}", turns, record.images[:images], record.origin, group or record.group)


def answer_by_answer(record: Record) -> list[Record]:
    """A part for each assistant turn, with all turns before it as context."""
    ends = [i for i, turn in enumerate(record.turns) if turn.role == "assistant"]
    if len(ends) == 1 and ends[0] == len(record.turns) - 1:
        return [record]
    return [part(record, record.turns[: end + 1], number) for number, end in enumerate(ends)]
