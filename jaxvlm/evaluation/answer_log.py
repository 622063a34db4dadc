"""The answers of a suite as they come: one JSON line each, below a line with the settings that made them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from jaxvlm.errors import UserError, listed


@dataclasses.dataclass(frozen=True)
class Reply:
    """The answer to an item.

    Attributes:
      id: of the item.
      text: the answer; of ranked continuations the most likely one.
      tokens: its length; None: not known.
      truncated: whether it ended at the length limit; None: not known.
      scores: of each continuation, if they were ranked.
    """

    id: str
    text: str
    tokens: int | None = None
    truncated: bool | None = None
    scores: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without what is not known."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, ())}
        return {"id": self.id, "text": self.text} | known


class AnswerLog:
    """The file of answers, open for more.

    Attributes:
      replies: id -> what the file has.
    """

    def __init__(self, path: Path, replies: dict[str, Reply], file: IO[str] | None):
        """See `open_log`."""
        self.path, self.replies, self._file = path, replies, file

    def append(self, reply: Reply) -> None:
        """Adds an answer; it is in the file when this returns."""
        self.replies[reply.id] = reply
        if self._file is not None:
            self._file.write(json.dumps(reply.to_dict(), ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def open_log(path: Path, settings: Mapping[str, Any], count: int, *, resume: bool, writes: bool = True) -> AnswerLog:
    """Opens the file of answers, and reads those that it has.

    Args:
      settings: what the answers depend on, ready for JSON; the file's must be equal to be continued.
      count: how many answers are wanted.
      resume: continue the file, if there is one; otherwise it is replaced, unless it is unfinished.
      writes: False: on a host that reads along; the first has opened the file before.

    Raises:
      UserError: the file is unfinished and not to be resumed; its settings differ (all are named); it is damaged.
    """
    found = read_log(path) if path.exists() else None
    if found is not None and resume:
        _check_same(path, found[0], settings)
    elif found is not None and writes:
        if len(found[1]) < count and _differing(found[0], settings) == []:
            raise UserError(
                f"{path} has {len(found[1]):,} of {count:,} answers of an evaluation that was stopped; pass --resume "
                "to continue it, or remove the file"
            )
        found = None
    if not writes:
        return AnswerLog(path, found[1] if found else {}, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    if found is None:
        file = path.open("w", encoding="utf-8")
        file.write(json.dumps({"settings": settings}, ensure_ascii=False) + "\n")
        file.flush()
        return AnswerLog(path, {}, file)
    os.truncate(path, found[2])
    return AnswerLog(path, found[1], path.open("a", encoding="utf-8"))


def read_log(path: Path) -> tuple[dict[str, Any], dict[str, Reply], int]:
    """Reads a file of answers: settings, replies by id, and the number of bytes up to the end of the last whole line.

    Raises:
      UserError: a line other than the last, which a killed run may leave, is damaged, or an id is there twice.
    """
    lines = path.read_bytes().split(b"\n")
    whole, half = lines[:-1], lines[-1]
    try:
        settings = json.loads(whole[0])["settings"] if whole else {}
        replies = [Reply(**json.loads(line)) for line in whole[1:]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}); remove it, and start without --resume"
        ) from error
    replies = [dataclasses.replace(reply, scores=tuple(reply.scores)) for reply in replies]
    by_id = {reply.id: reply for reply in replies}
    if len(by_id) < len(replies):
        raise UserError(f"{path} has {len(replies) - len(by_id):,} ids twice; remove it, and start without --resume")
    return settings, by_id, path.stat().st_size - len(half)


def _check_same(path: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if differing := _differing(saved, now):
        raise UserError(
            f"the answers in {path} were made with other settings: {listed(differing)}; resume with the same, or leave "
            "--resume out to start again"
        )


def _differing(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    now = json.loads(json.dumps(now))  # tuples as lists
    names = sorted(saved.keys() | now.keys())
    return [f"{n}: {saved.get(n)!r} -> {now.get(n)!r}" for n in names if saved.get(n) != now.get(n)]
