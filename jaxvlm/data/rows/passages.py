"""Documents cut into passages, each of which fits into a row. Nothing of a text is lost or said twice."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator

import numpy as np

from jaxvlm.data.cache import cached_arrays
from jaxvlm.data.records import Record, RecordError, Turn
from jaxvlm.data.sources.load import Source
from jaxvlm.data.sources.mix import Mix, MixedSource
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.progress import progress_bar

_WINDOW = 2**17  # characters that are tokenized at once
_SPECIAL = 2  # tokens of a passage in addition to its text: BOS and the end token


class Passages:
    """A source (sources/load.py) of the passages of another source's documents, in their order.

    A passage ends before a line or a word where it can. All passages of a document have its id, so that they are held
    out together; only the last one is followed by an end token.
    """

    def __init__(self, source: Source, renderer: Renderer, tokens: int, *, quiet: bool = False):
        """Tokenizes all documents to find where they are cut, or takes the places from the cache.

        Args:
          tokens: T, of a row.
        """
        self._source = source
        digest = hashlib.blake2b(digest_size=16)
        digest.update(json.dumps([1, source.fingerprint(), renderer.fingerprint(), tokens]).encode())
        self._fingerprint = digest.hexdigest()
        made = cached_arrays("passages", self._fingerprint, lambda: _cut_all(source, renderer, tokens, quiet))
        self._spans = made["spans"]  # int64[n, 3]: document, first character, the one behind the last
        self._read = functools.lru_cache(2)(source.__getitem__)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_read": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._read = functools.lru_cache(2)(self._source.__getitem__)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> Record:
        """A passage.

        Raises:
          RecordError: its document breaks a rule.
        """
        document, start, end = map(int, self._spans[index])
        record = self._read(document)
        text = record.turns[-1].text if record.turns else ""
        if (start, end) == (0, len(text)) or len(record.turns) != 2:
            return record
        turns = (record.turns[0], Turn("assistant", text[start:end], record.turns[1].weight))
        continues = end < len(text) or record.continues
        return dataclasses.replace(record, turns=turns, origin=self.origin(index), continues=continues)

    def origin(self, index: int) -> str:
        """The place of a passage: its document, and the characters."""
        document, start, end = map(int, self._spans[index])
        return f"{self._source.origin(document)}, characters {start} to {end}"

    def questions(self, record: Record) -> list[Record]:
        """None: a text asks nothing."""
        return []

    def fingerprint(self) -> str:
        """Hash of the documents, of the tokenizer and of the row's length."""
        return self._fingerprint


def cut_documents(mix: Mix, renderer: Renderer, tokens: int) -> Mix:
    """The mix with the passages of its documents."""
    parts = [MixedSource(part.name, Passages(part.source, renderer, tokens), part.weight) for part in mix.parts]
    return Mix(parts)


def _cut_all(source: Source, renderer: Renderer, tokens: int, quiet: bool) -> dict[str, np.ndarray]:
    spans: list[tuple[int, int, int]] = []
    with progress_bar("cutting documents", len(source), "document", show=not quiet) as bar:
        for document in range(len(source)):
            try:
                turns = source[document].turns
            except RecordError:  # reading it as a passage reports it
                turns = ()
            text = turns[-1].text if len(turns) == 2 else ""
            spans += [(document, start, end) for start, end in cut(text, renderer, tokens)]
            bar.update()
    return {"spans": np.array(spans, np.int64).reshape(-1, 3)}


def cut(text: str, renderer: Renderer, tokens: int) -> Iterator[tuple[int, int]]:
    """Yields the first character, and the one behind the last, of each passage of a text; at least one.

    Args:
      tokens: of a row, the passage's BOS and end token included.
    """
    room = max(1, tokens - _SPECIAL)
    begin = 0
    while True:
        window = text[begin : begin + _WINDOW]
        starts = renderer.starts(window)
        is_last = begin + len(window) == len(text)
        at = first = 0  # token and character of the window
        while len(starts) - at > room or (at and len(renderer.starts(window[first:])) > room):
            at, end = _end(window, starts, first, at, room, renderer)
            yield begin + first, begin + end
            first = end
        if is_last:
            if first < len(window) or not at:
                yield begin + first, len(text)
            return
        if not at:  # a window of fewer tokens than a row
            yield begin, begin + len(window)
            begin += len(window)
        else:
            begin += first


def _end(text: str, starts: np.ndarray, first: int, at: int, room: int, renderer: Renderer) -> tuple[int, int]:
    """Where a passage that begins with token `at` ends: the token behind it, and the character."""
    least = at + max(1, room - room // 8)
    most = min(at + room, len(starts) - 1)
    while True:
        # Not between tokens of one character.
        places = [t for t in range(most, at, -1) if starts[t] > starts[t - 1] and starts[t] > first]
        if not places:  # the first character alone takes more tokens than a row has
            behind = int(np.argmax(starts > first)) or len(starts)
            return behind, int(starts[behind]) if behind < len(starts) else len(text)
        near = [t for t in places if t >= least]
        lines = [t for t in near if "\n" in text[starts[t] - 1 : starts[t]]]
        words = [t for t in near if text[starts[t]].isspace() or text[starts[t] - 1].isspace()]
        found = (lines or words or places)[0]
        end = int(starts[found])
        # Alone it may have a few tokens more than as a part of the text.
        excess = len(renderer.starts(text[first:end])) - room
        if excess <= 0 or most <= at + 1:
            return found, end
        most = max(at + 1, most - excess)
        least = min(least, most)
