"""Scores answers against the reference answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from jaxvlm.data.records import Record, has_videos, split_media


def score(records: Sequence[Record], answers: Sequence[str]) -> dict[str, Any]:
    """Exact match: the share of answers equal to the reference, except for white space at both ends.

    Args:
      records: each ends with the reference answer.
      answers: one for each.

    Returns:
      `{"exact_match": 0.75, "count": 4, "by_group": {"color": {"exact_match": 1.0, "count": 2}, ...}}`; records
      without a group count in the whole only.
    """
    hits = [is_right(record, text) for record, text in zip(records, answers, strict=True)]
    by_group: dict[str, list[bool]] = defaultdict(list)
    for record, hit in zip(records, hits, strict=True):
        if record.group:
            by_group[record.group].append(hit)
    return _share(hits) | {"by_group": {group: _share(by_group[group]) for group in sorted(by_group)}}


def is_right(record: Record, text: str) -> bool:
    """Whether `text` equals the record's reference answer."""
    return text.strip() == truth(record)


def truth(record: Record) -> str:
    """The reference answer: the last turn."""
    return record.turns[-1].text.strip()


def question(record: Record) -> str:
    """Text of the last user turn, without images and videos."""
    text = [turn.text for turn in record.turns if turn.role == "user"][-1]
    return "".join(split_media(text, videos=has_videos(record.images))[::2]).strip()


def _share(hits: list[bool]) -> dict[str, Any]:
    return {"exact_match": sum(hits) / len(hits) if hits else 0.0, "count": len(hits)}
