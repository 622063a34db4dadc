"""Drops the reports of orbax and tensorstore on failed reads and writes: a run reports each once, itself.

When one array fails, orbax raises and closes its event loop. The other arrays' tasks then fail too, and are reported
with a traceback each: by asyncio's log, by threads whose results find the loop closed, and by coroutines that are
collected.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
import traceback
from typing import Any


@functools.cache
def drop_reports_of_orbax() -> None:
    """Installs the filters for this process; a second call does nothing."""
    logging.getLogger("asyncio").addFilter(is_not_of_orbax)
    asyncio.set_event_loop_policy(_Policy())
    report_unraisable = sys.unraisablehook

    def unraisablehook(unraisable: Any) -> None:
        if not _raised_by_orbax(unraisable.exc_value):
            report_unraisable(unraisable)

    sys.unraisablehook = unraisablehook


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that drops results which come after it was closed."""

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        if self.is_closed():
            return asyncio.Handle(callback, args, self, context)
        return super().call_soon_threadsafe(callback, *args, context=context)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


def is_not_of_orbax(message: logging.LogRecord) -> bool:
    """Whether a log record is about anything but a failed task of orbax."""
    error = message.exc_info[1] if message.exc_info else None
    return "orbax/checkpoint" not in message.getMessage() and not _raised_by_orbax(error)


def _raised_by_orbax(error: BaseException | None) -> bool:
    while error is not None:
        modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
        if any(name.partition(".")[0] in ("orbax", "tensorstore") for name in modules):
            return True
        error = error.__cause__ or error.__context__
    return False
