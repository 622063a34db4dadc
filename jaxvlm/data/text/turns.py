"""Checks that the turns of a record form a conversation that can be rendered."""

from __future__ import annotations

import dataclasses
import re

from jaxvlm.data.records import (
    IMAGE,
    VIDEO,
    Record,
    RecordError,
    has_videos,
    placeholder_of,
    placeholders,
    unspelled,
)

MAX_CHARACTERS = 2**22  # per record; a tokenizer takes 200 bytes of memory and one microsecond per character
# Unicode reserves U+FDD0 to U+FDEF as noncharacters. `check_turns` refuses them, so that no record can contain our
# marks. It also refuses lone surrogates, which no tokenizer accepts.
_NOT_TEXT = re.compile("[\ufdd0-\ufdef\ud800-\udfff]")


def drop_leading_answer(record: Record) -> Record:
    """Returns the record without an assistant turn before its first user turn; the same object if it has none.

    LLaVA drops such a turn silently. Here the caller decides to drop it, and can count the records that changed.
    """
    turns = record.turns
    skip = int(bool(turns) and turns[0].role == "system")
    if len(turns) <= skip or turns[skip].role != "assistant":
        return record
    return dataclasses.replace(record, turns=turns[:skip] + turns[skip + 1 :])


def drop_last_question(record: Record) -> Record:
    """Returns the record without a user turn after its last answer, and its images; the same object if it has none."""
    turns = record.turns
    if len(turns) < 2 or turns[-1].role != "user" or turns[-2].role != "assistant":
        return record
    images = len(record.images) - len(placeholders(turns[-1:], videos=has_videos(record.images)))
    return dataclasses.replace(record, turns=turns[:-1], images=record.images[: max(0, images)])


def check_turns(record: Record, *, last: str = "assistant", captions: bool = False, documents: bool = False) -> None:
    """Checks that a record can be rendered.

    Args:
      record: the record; its images are counted, not opened.
      last: the required role of its last turn: "assistant" for training, "user" for a prompt.
      captions: whether the template has `captions` set; user text may then be empty.
      documents: whether it has `documents` set; user text is then empty, except in a prompt.

    Raises:
      RecordError: lists every problem of the record; its `reason` is that of the first problem.
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
        text = turn.text if documents else turn.text.strip()  # a passage of a document may be blank lines
        if not text and turn.role != "system" and not ((captions or documents) and turn.role == "user"):
            problems.append(("empty_turn", f"{where} is empty; {_remedy_of_empty(record)}"))
        found = _NOT_TEXT.search(unspelled(turn.text) if turn.role == "user" else turn.text)
        if found:
            name = f"U+{ord(found[0]):04X} at character {found.start()}"
            problems.append(("invalid_text", f"{where} contains {name}, which is not valid in text; remove it"))
    characters = sum(len(turn.text) for turn in turns)
    if characters > MAX_CHARACTERS:
        problem = f"its text has {characters:,} characters, the limit is {MAX_CHARACTERS:,}; split the record"
        problems.append(("text_too_long", problem))
    if len(turns) == first:
        problems.append(("no_turns", f"{len(turns)} turns, none of them by a user; drop the record"))
    elif turns[-1].role != last:
        problems.append(("last_turn", f"the last turn must be of role {last}, found {turns[-1].role}; add or cut one"))
    if documents and last == "assistant" and any(turn.text for turn in turns if turn.role != "assistant"):
        problem = 'it is a conversation, and template "document" takes texts; choose another (config.data.template)'
        problems.append(("not_a_document", problem))
    if (captions or documents) and len(turns) - first > (2 if last == "assistant" else 1):
        problems.append(("rounds", f"a caption template takes one round, found {len(turns) - first} turns; split them"))
    problems += _media_problems(record)
    if problems:
        raise RecordError(
            f"{record.origin}: " + "; ".join(text for _, text in problems), origin=record.origin, reason=problems[0][0]
        )


def _media_problems(record: Record) -> list[tuple[str, str]]:
    """What is wrong with the placeholders of a record: their number, or the kinds in their order."""
    videos = has_videos(record.images)
    found, expected = placeholders(record.turns, videos=videos), [placeholder_of(medium) for medium in record.images]
    if not videos:
        problem = f"user turns contain {len(found)} {IMAGE} for {len(expected)} images; write one {IMAGE} each"
        return [("image_count", problem)] if len(found) != len(expected) else []
    if sorted(found) != sorted(expected):
        counts = f"{found.count(IMAGE)} {IMAGE} and {found.count(VIDEO)} {VIDEO}"
        media = f"{expected.count(IMAGE)} images and {expected.count(VIDEO)} videos"
        return [("video_count", f"user turns contain {counts} for {media}; write one placeholder each")]
    wrong = next((number for number, pair in enumerate(zip(found, expected, strict=True)) if len(set(pair)) > 1), None)
    if wrong is None:
        return []
    problem = f"placeholder {wrong} of the user turns is {found[wrong]} and its medium one of {expected[wrong]}"
    return [("video_order", f"{problem}; the k-th placeholder stands for the k-th medium")]


def _remedy_of_empty(record: Record) -> str:
    if len(record.turns) == 2 and record.turns[1].text.strip() and not record.images:
        return 'fill it, or set config.data.template = "document" to train on texts without questions'
    return "fill it or drop the record"
