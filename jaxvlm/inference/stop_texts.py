"""Ends a streamed answer before a text."""

from __future__ import annotations

from collections.abc import Sequence

from jaxvlm.errors import UserError


class StopTexts:
    """Passes pieces of an answer on until one of some texts appears; no part of that text is passed on.

        stops ["User:"]   pieces ["Paris.", " Us", "eful.", " Use", "r: and"]
                       passed on ["Paris.", "", " Useful.", "", ""]

    Of several texts the one that is complete first ends the answer, however the answer is cut into pieces. White space
    is held until more text follows, so an answer does not end in any.

    Attributes:
      found: whether one has appeared; nothing is passed on any more.
    """

    def __init__(self, stops: Sequence[str] = ()):
        """Takes the texts; without any, all pieces are passed on at once.

        Raises:
          UserError: a text is empty.
        """
        if "" in stops:
            raise UserError("a stop text is empty and would end each answer before it starts; leave it out (--stop)")
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Takes the next piece of the answer; returns what can be passed on, "" if nothing can."""
        if not self._stops or self.found:
            return "" if self.found else piece
        self._held += piece
        ends = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if ends:
            self.found = True
            start = min(ends)[1]
            return self._held[:start].rstrip()
        ready = self._held[: len(self._held) - self._begun()].rstrip()
        self._held = self._held[len(ready) :]
        return ready

    def rest(self) -> str:
        """What is left to pass on when the answer has ended."""
        rest, self._held = "" if self.found else self._held, ""
        return rest

    def _begun(self) -> int:
        """Length of the longest end of the held text that a stop text begins with."""
        longest = max(map(len, self._stops)) - 1
        sizes = range(min(longest, len(self._held)), 0, -1)
        return next((n for n in sizes if any(stop.startswith(self._held[-n:]) for stop in self._stops)), 0)
