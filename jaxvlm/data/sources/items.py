"""Items: random access to the dictionaries of a file or a data set; with a format, a source of records.

len(items), items[i]     the dictionary; raises `RecordError`, or `UserError` if the file is gone
items.origin(i)          its place, for messages
items.fingerprint()      hash of the content
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxvlm.data.records import Record, answer_by_answer
from jaxvlm.data.sources.formats import Format, make_record
from jaxvlm.data.sources.image_refs import ImageRule
from jaxvlm.data.sources.values import short


class Items(Protocol):
    """See the top of this file."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def origin(self, index: int) -> str: ...  # noqa: D102

    def fingerprint(self) -> str: ...  # noqa: D102


class Concatenated:
    """Items one after another."""

    def __init__(self, parts: Sequence[Items]):
        self._parts = parts
        self._ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Any:
        part, within = self._find(index)
        return part[within]

    def origin(self, index: int) -> str:
        """The place of the item in its part."""
        part, within = self._find(index)
        return part.origin(within)

    def fingerprint(self) -> str:
        """Hash of the parts' fingerprints."""
        return hash_texts(part.fingerprint() for part in self._parts)

    def _find(self, index: int) -> tuple[Items, int]:
        number = bisect.bisect_right(self._ends, index)
        return self._parts[number], index - (self._ends[number - 1] if number else 0)


class Chosen:
    """A fixed random choice of `count` items, in their order."""

    def __init__(self, items: Items, count: int):
        self._items = items
        # RandomState, because its stream never changes (NEP 19).
        self._chosen = np.sort(np.random.RandomState(0).permutation(len(items))[:count])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Any:
        return self._items[int(self._chosen[index])]

    def origin(self, index: int) -> str:
        """The place of the item among all."""
        return self._items.origin(int(self._chosen[index]))

    def fingerprint(self) -> str:
        """Hash of all items and of the number."""
        return hash_texts([self._items.fingerprint(), str(len(self._chosen))])


class ItemSource:
    """A source of records (sources.py): items and their format."""

    def __init__(self, items: Items, format: Format, rule: ImageRule, image_folder: str = ""):
        """Stores its arguments; `image_folder` is the recipe's, "" if the folder of `rule` follows from the data."""
        self._items, self._format, self._rule, self._image_folder = items, format, rule, image_folder

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Record:
        """Makes one record.

        Raises:
          RecordError: with all its faults.
        """
        record = make_record(self._items[index], self.origin(index), self._format, self._rule)
        columns = tuple(f"column {short(column)}" for column in getattr(self._items, "unread", ()))
        return dataclasses.replace(record, notes=record.notes + columns) if columns else record

    def origin(self, index: int) -> str:
        """The place of record `index`."""
        return self._items.origin(index)

    def questions(self, record: Record) -> list[Record]:
        """A question for each assistant turn, with all turns before it as context."""
        return answer_by_answer(record)

    def fingerprint(self) -> str:
        """Hash of the content and of the settings by which it is read, but not of the data's path."""
        return hash_texts(
            [self._items.fingerprint(), repr(self._format), self._image_folder, str(self._rule.allow_outside)]
        )


def hash_texts(texts: Iterable[str]) -> str:
    """One hash of several texts."""
    digest = hashlib.blake2b()
    for text in texts:
        data = text.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8) + data)
    return digest.hexdigest()


def hash_files(paths: Sequence[Path]) -> str:
    """One hash of the bytes of several files, in this order; reads them in threads, 1 GB takes about a second."""
    with ThreadPoolExecutor(8) as pool:
        return hash_texts(pool.map(_hash_file, paths))


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
