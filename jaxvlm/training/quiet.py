"""Drops the reports of orbax and tensorstore on failed reads and writes: a run reports each once, itself.

When one array fails, orbax raises and closes its event loop. The other arrays' tasks and futures then fail too, and are
reported with an error each: by the loop that they belong to, by threads whose results find the loop closed, and by
coroutines that are collected.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import traceback
from types import FrameType
from typing import Any


@functools.cache
def drop_reports_of_orbax() -> None:
    """Installs the event loop policy and the hook for this process; a second call does nothing."""
    asyncio.set_event_loop_policy(QuietPolicy())
    report_unraisable = sys.unraisablehook

    def unraisablehook(unraisable: Any) -> None:
        if not _raised_by_orbax(unraisable.exc_value):
            report_unraisable(unraisable)

    sys.unraisablehook = unraisablehook


class QuietPolicy(asyncio.DefaultEventLoopPolicy):
    """Gives orbax event loops that report nothing, and everybody else the usual ones."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A loop for the caller: quiet where any frame of the call is orbax's."""
        frame: FrameType | None = sys._getframe()
        while frame is not None:
            if _of_orbax(frame):
                return _QuietLoop()
            frame = frame.f_back
        return super().new_event_loop()


class _QuietLoop(asyncio.SelectorEventLoop):
    """Drops what nobody waits for: errors of tasks and futures, and results that come after it was closed.

    Most of those errors were set by tensorstore's threads, not raised: they have no traceback to know them by.
    """

    def call_exception_handler(self, context: Any) -> None:
        pass

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        if self.is_closed():
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon_threadsafe(callback, *args, context=context)


def _raised_by_orbax(error: BaseException | None) -> bool:
    while error is not None:
        if any(_of_orbax(frame) for frame, _ in traceback.walk_tb(error.__traceback__)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _of_orbax(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] in ("orbax", "tensorstore")
