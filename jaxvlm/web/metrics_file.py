"""Reads metrics.jsonl while a run appends to it.

A place in the file is a cursor, "INODE:OFFSET". A resumed run replaces the file, so that another inode, or a file that
is shorter than the offset, means that everything has to be read again. A last line without its end is not read yet.
"""

from __future__ import annotations

import array
import dataclasses
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

START = "0:0"  # the cursor of a file that does not exist yet
_GUARD = 64  # bytes before the offset, which are compared: an inode may be used again
_CHUNK = 2**22
_MOST_SERIES = 200
_MOST_STAGES = 200
_LARGEST_STEP = 2**53


@dataclasses.dataclass
class Series:
    """The values of one metric, in the order of the file.

    Attributes:
      step: of its stage, int64.
      value: float64; NaN where the run had one.
      stage: index into `MetricsFile.stages`.
    """

    step: array.array
    value: array.array
    stage: array.array

    @staticmethod
    def empty() -> Series:
        """A series without values."""
        return Series(array.array("q"), array.array("d"), array.array("i"))

    def append(self, step: int, value: float, stage: int) -> None:
        """Adds a value, in place of those of this step and later ones of its stage: a run may repeat steps."""
        while self.step and self.stage[-1] == stage and self.step[-1] >= step:
            for column in (self.step, self.value, self.stage):
                column.pop()
        self.step.append(step)
        self.value.append(value)
        self.stage.append(stage)


class MetricsFile:
    """The content of one metrics.jsonl; `read` adds what is new. Several threads may call it."""

    def __init__(self, path: Path):
        """Reads nothing."""
        self._path = path
        self._lock = threading.Lock()
        self._reset(0)

    def _reset(self, inode: int) -> None:
        self._inode, self._offset, self._guard = inode, 0, b""
        self.stages: list[str] = []
        self.last: list[int] = []  # the newest step of each stage
        self.series: dict[str, Series] = {}

    @property
    def lock(self) -> threading.Lock:
        """Is taken by `read`; hold it while the series are used."""
        return self._lock

    def read(self) -> str:
        """Reads the lines that are new, and returns the cursor behind them. The caller has the lock."""
        try:
            with self._path.open("rb") as file:
                stat = os.fstat(file.fileno())
                if not self._continues(file, stat):
                    self._reset(stat.st_ino)
                file.seek(self._offset)
                for line in _whole_lines(file):
                    self._add(line)
                    self._offset += len(line)
                    self._guard = (self._guard + line)[-_GUARD:]
        except FileNotFoundError:
            self._reset(0)
        return f"{self._inode}:{self._offset}"

    def _continues(self, file: IO[bytes], stat: os.stat_result) -> bool:
        if stat.st_ino != self._inode or stat.st_size < self._offset:
            return False
        file.seek(self._offset - len(self._guard))
        return file.read(len(self._guard)) == self._guard

    def _add(self, line: bytes) -> None:
        values = parse_line(line)
        if values is None:
            return
        name, step = values.pop("stage"), values.pop("step")
        if name not in self.stages:
            if len(self.stages) >= _MOST_STAGES:
                return
            self.stages.append(name)
            self.last.append(0)
        stage = self.stages.index(name)
        self.last[stage] = step
        for key, value in values.items():
            series = self.series.get(key)
            if series is None:
                if len(self.series) >= _MOST_SERIES:
                    continue
                series = self.series[key] = Series.empty()
            series.append(step, value, stage)

    def offsets(self) -> list[int]:
        """What to add to the steps of each stage, so that the stages follow one another."""
        return [sum(self.last[:i]) for i in range(len(self.last))]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A line as {"stage", "step", name: number, ...}; None for one that is damaged."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("stage"), str):
        return None
    if type(found.get("step")) is not int or not 0 <= found["step"] < _LARGEST_STEP:
        return None
    return {key: value for key, value in found.items() if key == "stage" or type(value) in (int, float)}


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines that have their end, with it."""
    for line in file:
        if not line.endswith(b"\n"):
            return
        yield line


@dataclasses.dataclass(frozen=True)
class News:
    """What was added to the file since a cursor.

    Attributes:
      cursor: behind it.
      reset: the cursor is of another content: read the curves again; there are no lines then.
      lines: values of `parse_line`.
    """

    cursor: str
    reset: bool
    lines: list[dict[str, Any]]


def read_news(path: Path, cursor: str, most: int = 2**18) -> News:
    """The lines since a cursor, at most `most` bytes of them; the next call continues."""
    inode, offset = _parse_cursor(cursor)
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            if inode == 0:
                inode, offset = stat.st_ino, 0
            if inode != stat.st_ino or not _is_line_start(file, offset, stat.st_size):
                return News(f"{stat.st_ino}:{_end_of_lines(file, stat.st_size)}", True, [])
            file.seek(offset)
            content = file.read(most)
    except FileNotFoundError:
        return News(START, inode != 0, [])
    content = content[: content.rfind(b"\n") + 1]
    lines = [parsed for line in content.splitlines() if (parsed := parse_line(line))]
    return News(f"{inode}:{offset + len(content)}", False, lines)


def end_cursor(path: Path) -> str:
    """The cursor behind the last whole line."""
    return read_news(path, "-1:0").cursor


def _parse_cursor(cursor: str) -> tuple[int, int]:
    inode, _, offset = cursor.partition(":")
    if inode[:20].isdecimal() and offset[:20].isdecimal():
        return int(inode[:20]), int(offset[:20])
    return -1, 0  # no file's


def _is_line_start(file: IO[bytes], offset: int, size: int) -> bool:
    if offset == 0 or offset > size:
        return offset == 0
    file.seek(offset - 1)
    return file.read(1) == b"\n"


def _end_of_lines(file: IO[bytes], size: int) -> int:
    start = max(0, size - _CHUNK)
    file.seek(start)
    return start + file.read(size - start).rfind(b"\n") + 1


def decimate(values: np.ndarray, points: int) -> np.ndarray:
    """Indices of at most `points` values that keep the shape of a curve: the least and the largest of each piece.

    Args:
      values: float[N]; NaN is neither least nor largest.
      points: 4 or more.

    Returns:
      int[M] in order, with the first and the last; all N if they are no more than `points`.
    """
    n = len(values)
    if n <= points:
        return np.arange(n)
    pieces = (points - 2) // 2
    edges = np.linspace(0, n, pieces + 1).astype(int)
    starts = edges[:-1]
    low, high = np.where(np.isnan(values), np.inf, values), np.where(np.isnan(values), -np.inf, values)
    owner = np.repeat(np.arange(pieces), np.diff(edges))
    chosen = [np.array([0, n - 1])]
    for key, best in ((low, np.minimum.reduceat(low, starts)), (high, np.maximum.reduceat(high, starts))):
        hits = np.flatnonzero(key == best[owner])
        chosen.append(hits[np.unique(owner[hits], return_index=True)[1]])
    return np.unique(np.concatenate(chosen))
