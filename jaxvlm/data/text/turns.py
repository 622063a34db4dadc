"""Checks that the turns of a record form a valid conversation."""

from __future__ import annotations

import dataclasses
import re

from jaxvlm.data.records import IMAGE, Record, RecordError

MAX_CHARACTERS = 2**22  # of a record: a tokenizer takes 200 bytes of memory and a microsecond for each
# Unicode reserves U+FDD0 to U+FDEF as noncharacters, so a string with one cannot come from a record: `check_turns`
# refuses those, and lone surrogates, which no tokenizer accepts.
_NOT_TEXT = re.compile("[\ufdd0-\ufdef\ud800-\udfff]")


def drop_leading_answer(record: Record) -> Record:
    """The record without an assistant turn before the first user turn; the same object if it has none.

    LLaVA drops such a turn silently. Here the caller may drop it, and counts the records that changed.
    """
    turns = record.turns
    skip = int(bool(turns) and turns[0].role == "system")
    if len(turns) <= skip or turns[skip].role != "assistant":
        return record
    return dataclasses.replace(record, turns=turns[:skip] + turns[skip + 1 :])


def check_turns(record: Record, *, last: str = "assistant", captions: bool = False) -> None:
    """Checks that a record can be rendered.

    Args:
      record: the record; its images are counted, not opened.
      last: role of its last turn: "assistant" to train on, "user" to be answered.
      captions: whether the template has `captions`, where user text may be empty.

    Raises:
      RecordError: lists every problem of the record; its `reason` is that of the first.
    """
    problems: list[tuple[str, str]] = []
    turns = record.turns
    first = int(bool(turns) and turns[0].role == "system")
    for index, turn in enumerate(turns):
        where = f"turn {index} ({turn.role})"
        expected = "user" if (index - first) % 2 == 0 else "assistant"
        if index >= first and turn.role != expected:
            remedy = "fix the roles"
            if index == first and turn.role == "assistant":
                remedy = "drop that turn (drop_leading_answer does)"
            problems.append(("roles", f"{where}: roles alternate user, assistant from the first turn on; {remedy}"))
            break  # one misplaced role would be reported again at every turn after it
    for index, turn in enumerate(turns):
        where = f"turn {index} ({turn.role})"
        if not turn.text.strip() and turn.role != "system" and not (captions and turn.role == "user"):
            problems.append(("empty_turn", f"{where} is empty; fill it or drop the record"))
        found = _NOT_TEXT.search(turn.text)
        if found:
            name = f"U+{ord(found[0]):04X} at character {found.start()}"
            problems.append(("invalid_text", f"{where} holds {name}, which Unicode keeps out of text; remove it"))
    characters = sum(len(turn.text) for turn in turns)
    if characters > MAX_CHARACTERS:
        problem = f"its text has {characters:,} characters, the limit is {MAX_CHARACTERS:,}; split the record"
        problems.append(("text_too_long", problem))
    if len(turns) == first:
        problems.append(("no_turns", f"{len(turns)} turns and none of a user; drop the record"))
    elif turns[-1].role != last:
        problems.append(("last_turn", f"the last turn must be of role {last}, found {turns[-1].role}; add or cut one"))
    if captions and len(turns) - first > (2 if last == "assistant" else 1):
        problems.append(("rounds", f"a caption template takes one round, found {len(turns) - first} turns; split them"))
    placeholders = sum(turn.text.count(IMAGE) for turn in turns if turn.role == "user")
    if placeholders != len(record.images):
        problems.append(
            (
                "image_count",
                f"user turns hold {placeholders} {IMAGE} for {len(record.images)} images; write one {IMAGE} an image",
            )
        )
    if problems:
        raise RecordError(
            f"{record.origin}: " + "; ".join(text for _, text in problems), origin=record.origin, reason=problems[0][0]
        )
