"""Runs the server's process: its start, and its end on a signal."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from jaxvlm.processes import log
from jaxvlm.serving.server import Service, build_app

_FLUSH_SECONDS = 5  # for replies to reach their clients after the last answer has ended


class Server:
    """The server's process, from its socket on."""

    def __init__(self, service: Service, listening: socket.socket, grace: float, on_ready: Callable[[], None]):
        """Takes what serves.

        Args:
          listening: of `listening.bind`.
          grace: seconds for the answers in progress when it stops.
          on_ready: is called when requests are taken.
        """
        config = uvicorn.Config(
            build_app(service),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_FLUSH_SECONDS,
        )
        self._service, self._listening, self._on_ready = service, listening, on_ready
        self._starting = threading.Thread(target=self._start, name="start", daemon=True)
        self._http = _Uvicorn(config, service, grace, self._starting.start)
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Serves until `stop`, SIGTERM or SIGINT. It listens at once, and answers 503 until the scheduler is ready.

        Raises:
          Exception: whatever the scheduler's start raises.
        """
        self._http.run(sockets=[self._listening])
        if self._failure is not None:
            raise self._failure
        if self._starting.is_alive():  # a compiler has no end that can be asked for, and nothing has to be saved
            log("stopped while the model was being compiled")
            sys.stderr.flush()
            os._exit(0)

    def _start(self) -> None:
        try:
            self._service.scheduler.start(progress=True)
        except BaseException as error:
            self._failure = error
            self._http.should_exit = True
            return
        if self._service.state == "starting":
            self._service.state = "ready"
            self._on_ready()

    def stop(self) -> None:
        """Lets the answers in progress finish, and ends `run`; the second call ends it at once. From any thread."""
        self._http.stop()


class _Uvicorn(uvicorn.Server):
    """Uvicorn, which on a signal first refuses requests and finishes those it has, and then exits with 0."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float, on_listening: Callable[[], None]):
        super().__init__(config)
        self._service, self._grace, self._on_listening = service, grace, on_listening
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Is called for SIGTERM and SIGINT."""
        self.stop()

    def stop(self) -> None:
        """See `Server.stop`."""
        is_first, self._service.state = self._service.state in ("ready", "failed"), "stopping"
        if not is_first or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        log(f"stopping: {self._service.open} requests have {self._grace:g} s to finish; a second signal ends them")
        self._loop.call_soon_threadsafe(self._start_draining)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens; notes the event loop, for `stop`."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._on_listening()

    def _start_draining(self) -> None:
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        # Not in asyncio's executor, whose threads a second signal would wait for.
        closing = threading.Thread(target=self._service.scheduler.close, args=(self._grace,), daemon=True)
        closing.start()
        while closing.is_alive():
            await asyncio.sleep(0.02)
        deadline = asyncio.get_running_loop().time() + _FLUSH_SECONDS
        while self._service.open and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        self.should_exit = True
