"""Runs the studio's process: its root, and its end on a signal."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from jaxvlm.errors import UserError
from jaxvlm.files import Lock
from jaxvlm.web.queue import QueueThread
from jaxvlm.web.run_list import list_runs
from jaxvlm.web.run_state import ACTIVE
from jaxvlm.web.server import build_app

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

_FLUSH_SECONDS = 3  # for replies in progress at the end
_LISTENING = "0A"  # state of a socket in /proc/net/tcp


def owner_of(port: int) -> int | None:
    """The process that listens on a port of this machine; None if that cannot be told."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    wanted = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(str(link.readlink()) in wanted for link in (process / "fd").iterdir()):
                return int(process.name)
    return None


def take_root(root: Path) -> Lock:
    """The lock of a root: two studios would both start what is queued.

    Raises:
      UserError: another studio has it.
    """
    (root / ".studio").mkdir(exist_ok=True)
    lock = Lock(root / ".studio" / "lock")
    try:
        lock.take()
    except UserError as error:
        owner = re.search(r"\{.*\}|unknown", str(error))
        raise UserError(
            f"another studio has {root}: {owner[0] if owner else 'unknown'}; use that one, or start this one with "
            "--read-only"
        ) from error
    return lock


def runs_that_go_on(studio: Studio) -> list[str]:
    """The runs that have a process on this machine."""
    return [run["id"] for run in list_runs(studio)["runs"] if run["state"] in ACTIVE]


class Server:
    """The studio's process, from its socket on."""

    def __init__(self, studio: Studio, listening: socket.socket, on_ready: Callable[[], object]):
        """Takes what serves.

        Args:
          listening: of `listening.bind`.
          on_ready: is called when requests are taken.
        """
        config = uvicorn.Config(
            build_app(studio),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=_FLUSH_SECONDS,
        )
        self._studio, self._listening = studio, listening
        self._http = _Uvicorn(config, studio, on_ready)

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT, and starts the runs of the queue meanwhile."""
        queue = None if self._studio.read_only else QueueThread(self._studio.queue)
        if queue is not None:
            queue.start()
        try:
            self._http.run(sockets=[self._listening])
        finally:
            if queue is not None:
                queue.stop()


class _Uvicorn(uvicorn.Server):
    """Uvicorn, which on a signal also ends the event streams, and exits with 0."""

    def __init__(self, config: uvicorn.Config, studio: Studio, on_ready: Callable[[], object]):
        super().__init__(config)
        self._studio, self._on_ready = studio, on_ready

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Is called for SIGTERM and SIGINT; a second one does not wait for replies."""
        self.force_exit = self._studio.closing
        self._studio.closing = self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes requests."""
        await super().startup(sockets)
        threading.Thread(target=self._on_ready, name="ready", daemon=True).start()
