"""What requests leave for later ones, bounded in bytes: features of images, and beginnings of prompts.

Axis letters:
  L tokens of a prompt
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

import numpy as np

from jaxvlm.inference.slots import Beginning

Value = TypeVar("Value")

# A prompt of which this share is stored already is not stored: its own tokens are few.
_ENOUGH = 0.75


class ByteLru(Generic[Value]):
    """A mapping that forgets what was used least recently; for one thread.

    Attributes:
      limit: bytes of all values together, at most.
      used: bytes of the values that it has.
    """

    def __init__(self, limit: int):
        """An empty one."""
        self.limit, self.used = limit, 0
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> list[tuple[Hashable, Value]]:
        """Keys and values, the one used least recently first; none counts as used."""
        return [(key, value) for key, (value, _) in self._values.items()]

    def get(self, key: Hashable) -> Value | None:
        """The value, which counts as used now; None if there is none."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Hashable, value: Value, size: int) -> None:
        """Stores a value of so many bytes; one larger than `limit` is not stored."""
        self.drop(key)
        if size > self.limit:
            return
        self._values[key] = value, size
        self.used += size
        while self.used > self.limit:
            self.drop(next(iter(self._values)))

    def drop(self, key: Hashable) -> None:
        """Forgets a value, if it is there."""
        if key in self._values:
            self.used -= self._values.pop(key)[1]


@dataclasses.dataclass(frozen=True, eq=False)
class PromptKey:
    """What the keys and values of a prompt depend on."""

    tokens: np.ndarray  # int32[L]
    images: np.ndarray  # int32[L], at a feature the number of its image, -1 at text
    hashes: tuple[bytes, ...]  # of each image

    def common(self, other: PromptKey) -> int:
        """The length of the beginning that two prompts share."""
        length = min(len(self.tokens), len(other.tokens))
        differs = (self.tokens[:length] != other.tokens[:length]) | (self.images[:length] != other.images[:length])
        if differs.any():
            length = int(np.argmax(differs))
        for number, (own, others) in enumerate(zip(self.hashes, other.hashes, strict=False)):
            if own != others:
                places = np.flatnonzero(self.images[:length] == number)
                return int(places[0]) if len(places) else length
        return length


class PrefixCache:
    """Keys and values of prompts; a prompt that begins as one of them is read from where they part.

    A prompt that shares most of its tokens with a stored one is not stored itself: 100 questions about an image take
    the memory of one.
    """

    def __init__(self, limit: int):
        """Takes at most `limit` bytes; 0: stores nothing."""
        self.limit = limit
        self._stored: ByteLru[tuple[PromptKey, Beginning]] = ByteLru(limit)

    def find(self, key: PromptKey) -> tuple[Beginning | None, int]:
        """The stored prompt with the longest common beginning, and its length; at least the last token is left out."""
        best, length = None, 0
        for name, (stored, _) in self._stored.items():
            common = min(key.common(stored), len(key.tokens) - 1)
            if common > length:
                best, length = name, common
        found = self._stored.get(best)
        return (None, 0) if found is None else (found[1], length)

    def wants(self, key: PromptKey) -> bool:
        """Whether a prompt shares too little with what is stored."""
        longest = max((key.common(stored) for _, (stored, _) in self._stored.items()), default=0)
        return longest < _ENOUGH * len(key.tokens)

    def put(self, key: PromptKey, beginning: Beginning) -> None:
        """Stores a prompt, in place of those that it begins with."""
        for name, (stored, _) in self._stored.items():
            if key.common(stored) == len(stored.tokens):
                self._stored.drop(name)
        self._stored.put(id(key), (key, beginning), sum(x.nbytes for x in beginning))

    @property
    def used(self) -> int:
        """Bytes of all that is stored."""
        return self._stored.used
