"""Floating point operations of a step: what is counted, and of how much work."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step of the recipe goes through, on average."""

    rows: int  # of all chips
    tokens: float  # positions of a row that are no padding, image features among them
    samples: float  # that share a row
    units: float  # media units of a row that hold something
    supervised: float  # positions of a row whose target counts


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of one part of a step."""

    name: str
    forward: float
    backward: float  # in forwards
    how: str

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward * (1 + self.backward)
