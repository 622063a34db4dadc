"""The ledger: the fate of every record.

Each record that was read ends in exactly one of these, so the counts always add up to the number of records:

  used       has rows of its own
  packed     shares a row with others
  truncated  lost text at its end, because a row was too short for all of it
  rejected   broke a rule and was left out
  heldout    is kept for evaluation
  unreached  training ended before its turn came
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxvlm.errors import UserError

FATES = ("used", "packed", "truncated", "rejected", "heldout", "unreached")
WHOLE = "whole"  # the reason of a record without a fault


@dataclass(frozen=True)
class Ledger:
    """Counts of records by their fate and its reason."""

    counts: dict[str, dict[str, int]]  # fate -> reason -> records

    @classmethod
    def of(cls, entries: list[tuple[str, str]]) -> Ledger:
        """Makes the ledger from one (fate, reason) for each record read.

        Raises:
          ValueError: a fate that is not one of `FATES`.
        """
        counted = Counter(entries)
        unknown = {fate for fate, _ in counted} - set(FATES)
        if unknown:
            raise ValueError(f"a record ends in one of {', '.join(FATES)}, found {', '.join(sorted(unknown))}")
        return cls({f: {r: n for (g, r), n in sorted(counted.items()) if g == f} for f in FATES})

    @property
    def read(self) -> int:
        """How many records were read."""
        return sum(self.total(fate) for fate in FATES)

    def total(self, fate: str) -> int:
        """How many records ended in `fate`, for any reason."""
        return sum(self.counts[fate].values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: `{"read": 5, "used": {"total": 4, "reasons": {...}}, ...}`."""
        return {"read": self.read} | {f: {"total": self.total(f), "reasons": dict(self.counts[f])} for f in FATES}

    def save(self, path: str | Path) -> None:
        """Writes it as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Ledger:
        """Reads what `save` wrote.

        Raises:
          UserError: the file is missing, or is not a ledger, or its counts do not add up.
        """
        try:
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            ledger = cls({fate: dict(saved[fate]["reasons"]) for fate in FATES})
            if saved != ledger.to_dict():
                raise ValueError("its counts do not add up to the records read")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is no ledger ({type(error).__name__}: {error}); it is written at the end of a run"
            ) from error
        return ledger

    def table(self) -> str:
        """A table for printing: each fate with its count, followed by its reasons."""
        rows = [("records read", self.read)]
        for fate in FATES:
            rows.append((f"  {fate}", self.total(fate)))
            rows.extend((f"    {reason}", n) for reason, n in self.counts[fate].items() if reason != WHOLE)
        width = max(len(name) for name, _ in rows) + 2
        return "\n".join(f"{name:<{width}}{count:>9,}" for name, count in rows)
