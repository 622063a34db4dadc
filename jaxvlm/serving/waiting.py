"""Waits in the event loop for what the scheduler's thread delivers, and for clients that leave."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, TypeVar

from jaxvlm.serving.requests import Event, Finished, Request

if TYPE_CHECKING:
    from jaxvlm.serving.scheduler import Scheduler

Result = TypeVar("Result")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientLeftError(Exception):
    """The client has closed the connection."""


async def unless_client_leaves(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled if the client closes the connection first.

    Args:
      receive: of ASGI, after the whole body was read.

    Raises:
      ClientLeftError: it did.
    """

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class Answers:
    """The events of a call's requests, in the event loop. `close` has to be called, however the call ends.

    Attributes:
      open: how many requests have not finished.
    """

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._lock = threading.Lock()
        self._tickets: list[Any] = []
        self._is_closed = False
        self.open = 0

    async def submit(self, requests: tuple[Request, ...], pool: Executor) -> None:
        """Submits all requests on a thread of `pool`, where their texts are rendered.

        Raises:
          RequestError, QueueFullError, StoppedError: as `Scheduler.submit`, of the first that is refused.
        """
        self.open = len(requests)
        await self._loop.run_in_executor(pool, self._submit_all, requests)

    def _submit_all(self, requests: tuple[Request, ...]) -> None:
        for index, request in enumerate(requests):
            ticket = self._scheduler.submit(request, functools.partial(self._deliver, index))
            with self._lock:
                self._tickets.append(ticket)
                is_closed = self._is_closed
            if is_closed:  # the client left while this thread was busy
                self._scheduler.cancel(ticket)
                return

    def _deliver(self, index: int, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, (index, event))

    async def next(self) -> tuple[int, Event]:
        """The next event, and the number of its request."""
        index, event = await self._events.get()
        self.open -= isinstance(event, Finished)
        return index, event

    def close(self) -> None:
        """Cancels what has not finished."""
        with self._lock:
            self._is_closed = True
        for ticket in self._tickets:
            self._scheduler.cancel(ticket)
