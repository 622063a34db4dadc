"""The in-memory record: a conversation, its images, and where it came from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from jaxvlm.errors import UserError

IMAGE = "<image>"  # stands in a user turn where an image belongs


@dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: str  # "system", "user" or "assistant"
    text: str


@dataclass(frozen=True)
class Record:
    """One conversation about its images."""

    id: str
    turns: tuple[Turn, ...]
    images: tuple[str | bytes, ...]  # paths, or the bytes of an image file; the k-th `<image>` of the turns is the k-th
    origin: str  # "file.json[12]": where to look when something is wrong with it
    group: str = ""  # what evaluation groups by
    rejected: str = ""  # of a pair, the answer that lost; the last turn holds the one that won


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


def part(record: Record, turns: tuple[Turn, ...], number: int, group: str = "") -> Record:
    """Part `number` of a record: these of its turns, with the images that they have placeholders for."""
    images = sum(turn.text.count(IMAGE) for turn in turns if turn.role == "user")
    return Record(f"{record.id}#{number}", turns, record.images[:images], record.origin, group or record.group)


def sides_of_pair(record: Record) -> tuple[Record, Record]:
    """A pair's two conversations: that with the chosen answer, and that with the rejected one in its place.

    Raises:
      RecordError: the record has no rejected answer.
    """
    if not record.rejected:
        problem = "the stage's objective takes pairs, and it has no rejected answer"
        raise RecordError(f"{record.origin}: {problem}", record.origin, "no_rejected_answer")
    lost = dataclasses.replace(record.turns[-1], text=record.rejected)
    return record, dataclasses.replace(record, turns=(*record.turns[:-1], lost))


def answer_by_answer(record: Record) -> list[Record]:
    """A part for each assistant turn, with the turns before it, their answers too, as context."""
    ends = [i for i, turn in enumerate(record.turns) if turn.role == "assistant"]
    if len(ends) == 1 and ends[0] == len(record.turns) - 1:
        return [record]
    return [part(record, record.turns[: end + 1], number) for number, end in enumerate(ends)]
