"""Floating point operations of a step, and the work that they are counted for."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class Work:
    """The average work of a step of the recipe."""

    rows: int  # of all chips
    tokens: float  # positions of a row without padding, image features included
    samples: float  # that share a row
    units: float  # media units of a row in use
    images: float  # that share these units
    supervised: float  # supervised positions of a row


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one part of a step."""

    name: str
    forward: float
    backward: float  # in units of the forward pass
    how: str

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward * (1 + self.backward)


class Segments(NamedTuple):
    """How attention divides a row in some blocks of an encoder or decoder."""

    share: float  # of its blocks
    lengths: tuple[float, ...]  # positions of each segment in order; the rest of the row is padding

    @classmethod
    def equal(cls, positions: float, count: float, share: float = 1.0) -> Segments:
        """`count` segments that fill these positions; of a fraction of one, that fraction."""
        rest, whole = math.modf(count)
        lengths = [positions / count] * int(whole) + [positions / count * rest] * (rest > 0)
        return cls(share, tuple(lengths))
