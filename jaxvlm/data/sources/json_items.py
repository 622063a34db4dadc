"""Items of JSON and JSON Lines files by random access; only their byte offsets are in memory."""

from __future__ import annotations

import array
import codecs
import hashlib
import json
import mmap
import re
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.data.cache import cached_arrays
from jaxvlm.data.records import RecordError
from jaxvlm.errors import UserError

_WINDOW = 2**20  # bytes of a read; larger windows leave the processor's cache and take 1.5 times as long
_SPACE = re.compile(r"[ \t\n\r]*")  # what JSON calls whitespace
_BOM = codecs.BOM_UTF8  # some editors write it before UTF-8
# A number of 5,000 digits fails when its own record is read, not here for the whole file.
_DECODER = json.JSONDecoder(parse_int=float)


class JsonItems:
    """The elements of a list in a .json file, or the lines of a .jsonl file that are not blank."""

    def __init__(self, path: Path):
        self._path = path
        self._lines: np.ndarray | None = None
        try:
            if path.suffix == ".jsonl":
                self._spans, self._lines, self._fingerprint = _line_spans(path)
            else:
                with path.open("rb") as file:
                    self._fingerprint = hashlib.file_digest(file, "blake2b").hexdigest()
                scan = _ListScan(path)
                self._spans = cached_arrays("spans", self._fingerprint, lambda: {"spans": scan.spans()})["spans"]
        except OSError as error:
            raise _unreadable(path, error) from error

    def __len__(self) -> int:
        return len(self._spans)

    def origin(self, index: int) -> str:
        """The place of item `index`: "file.json[12]" counts from 0, "file.jsonl:13" is a line, from 1."""
        return f"{self._path}[{index}]" if self._lines is None else f"{self._path}:{self._lines[index]}"

    def fingerprint(self) -> str:
        """Hash of the file's bytes."""
        return self._fingerprint

    def __getitem__(self, index: int) -> Any:
        """The item.

        Raises:
          RecordError: it is not valid JSON, or not UTF-8.
          UserError: the file can no longer be read.
        """
        origin = self.origin(index)
        start, end = self._spans[index]
        # Opened for each record: there is no file handle to share between threads or to send to processes.
        try:
            with self._path.open("rb") as file:
                file.seek(start)
                data = file.read(end - start)
        except OSError as error:
            raise _unreadable(self._path, error) from error
        try:
            return json.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise RecordError(
                f"{origin} is not UTF-8 (byte {error.start} of the record is {data[error.start]:#04x}); "
                "save the file as UTF-8",
                origin,
                "invalid_utf8",
            ) from error
        except (ValueError, RecursionError) as error:
            raise RecordError(
                f"{origin} is not valid JSON ({error}); each line of a .jsonl file is one whole record",
                origin,
                "invalid_json",
            ) from error


def read_json(path: Path) -> Any:
    """Reads a small JSON file.

    Raises:
      UserError: it cannot be read, or is not valid JSON.
    """
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise _unreadable(path, error) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); fix it there") from error


def _unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read ({error.strerror}); check its permissions")


def _line_spans(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
    """Byte spans int64[n, 2] of the lines that are not blank, their numbers int64[n] from 1, a hash of the file."""
    digest = hashlib.blake2b()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not size:
            return np.zeros((0, 2), np.int64), np.zeros(0, np.int64), digest.hexdigest()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            breaks = []
            for start in range(0, size, _WINDOW):
                window = data[start : start + _WINDOW]
                digest.update(window)
                breaks.append(start + np.flatnonzero(np.frombuffer(window, np.uint8) == ord("\n")))
            ends = np.concatenate([*breaks, [size]]).astype(np.int64)
            starts = np.concatenate([[0], ends[:-1] + 1])
            starts[0] = len(_BOM) if data[: len(_BOM)] == _BOM else 0
            blank = [
                line
                for line, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
                if start >= end or (data[start] in b" \t\r\v\f" and not data[start:end].strip())
            ]
    keep = np.ones(len(ends), bool)
    keep[blank] = False
    return np.stack([starts, ends], 1)[keep], 1 + np.flatnonzero(keep), digest.hexdigest()


class _ListScan:
    """One pass over a JSON list, a window of the file at a time. Every element is parsed once, and dropped.

    ijson parses faster, and gives no byte offsets. Decoding the whole text takes two to four times the file in memory.
    """

    def __init__(self, path: Path):
        self._path = path
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at = "", 0  # the window, and where in it
        self._bytes, self._characters, self._lines, self._line_start = 0, 0, 0, 0  # before the window
        self._ended = False  # the window reaches to the end of the file
        self._found: list[int] = []  # spans in the window, in characters
        self._spans = array.array("q")  # spans before it, in bytes

    def spans(self) -> np.ndarray:
        """Byte spans int64[n, 2] of the elements; raises `UserError` if there is no such list."""
        with self._path.open("rb") as self._file:
            if self._file.read(len(_BOM)) == _BOM:
                self._bytes = len(_BOM)
            self._file.seek(self._bytes)
            try:
                self._scan()
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{self._path} is not a JSON list of records ({error.msg}: {self._place(error.pos)}); fix it "
                    "there, or name the file .jsonl if each line is one record"
                ) from error
            except RecursionError as error:
                raise UserError(
                    f"{self._path}: the record at {self._place(self._at)} nests lists or objects too deep to be read; "
                    "fix it there"
                ) from error
        self._drop()
        return np.array(self._spans, np.int64).reshape(-1, 2)

    def _scan(self) -> None:
        if self._next() != "[":
            raise json.JSONDecodeError("Expecting '['", self._text, self._at)
        self._at += 1
        closed = self._next() == "]"
        while not closed:
            end = self._element()
            self._found += (self._at, end)
            self._at = end
            follows = self._next()
            closed = follows == "]"
            if not closed:
                if follows != ",":
                    raise json.JSONDecodeError("Expecting ',' or ']'", self._text, self._at)
                self._at += 1
                self._next()
        self._at += 1
        if self._next():
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def _element(self) -> int:
        """The end of the element that begins here; the window grows until it contains the element."""
        while True:
            try:
                _, end = _DECODER.raw_decode(self._text, self._at)
                if end + 3 <= len(self._text) or self._ended:  # else a number may be longer, as 1 in 1e+5
                    return end
            except json.JSONDecodeError as error:
                # The window's end can cut strings, and literals and escapes of a few characters.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - 16
                if self._ended or not cut:
                    raise
            self._more()

    def _next(self) -> str:
        """Moves to the next character that is not white space and returns it; "" at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def _more(self) -> None:
        """Reads more: as much again as the window has, so that an element of any length takes linear time."""
        self._drop()
        data = self._file.read(max(_WINDOW, len(self._text)))
        self._ended = not data
        try:
            self._text += self._utf8.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            before = error.object[: error.start]
            line = 1 + self._lines + self._text.count("\n") + before.count(b"\n")
            byte = self._bytes + len(self._text.encode()) + len(before)
            raise UserError(
                f"{self._path} is not UTF-8 (line {line}, byte {byte} is {error.object[error.start]:#04x}); "
                "save it as UTF-8"
            ) from error

    def _drop(self) -> None:
        """Drops the window up to here; keeps the byte offsets of its elements."""
        if self._text.isascii():
            self._spans.extend(self._bytes + place for place in self._found)
            self._bytes += self._at
        else:
            last = 0
            for place in (*self._found, self._at):
                self._bytes += len(self._text[last:place].encode())
                self._spans.append(self._bytes)
                last = place
            self._spans.pop()  # that was `_at`, which is no span
        self._found.clear()
        newline = self._text.rfind("\n", 0, self._at)
        if newline >= 0:
            self._line_start = self._characters + newline + 1
            self._lines += self._text.count("\n", 0, self._at)
        self._characters += self._at
        self._text, self._at = self._text[self._at :], 0

    def _place(self, at: int) -> str:
        newline = self._text.rfind("\n", 0, at)
        start = self._line_start if newline < 0 else self._characters + newline + 1
        line = 1 + self._lines + self._text.count("\n", 0, at)
        return f"line {line} column {1 + self._characters + at - start} (char {self._characters + at})"
