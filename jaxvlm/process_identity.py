"""Which process it was: a process id is used again, its start time within one boot of one host is not."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PROC = Path("/proc")
_STATE, _START = 0, 19  # fields of /proc/PID/stat after the name (proc_pid_stat(5): 3 and 22)


def identity(pid: int) -> dict[str, Any]:
    """What tells the process from all others, JSON-ready: host, pid, start_ticks, boot_id.

    Raises:
      ProcessLookupError: there is no such process.
    """
    start = _start(pid)
    if start is None:
        raise ProcessLookupError(pid)
    return {"host": socket.gethostname(), "pid": pid, "start_ticks": start, "boot_id": _boot_id()}


def is_alive(recorded: Mapping[str, Any]) -> bool:
    """Whether exactly the process of an `identity` runs on this host; a zombie does not."""
    if is_elsewhere(recorded) or recorded.get("boot_id") != _boot_id():
        return False
    pid = recorded.get("pid")
    start = _start(pid) if isinstance(pid, int) and pid > 0 else None
    return start is not None and start == recorded.get("start_ticks")


def is_elsewhere(recorded: Mapping[str, Any]) -> bool:
    """Whether the process of an `identity` is one of another host, of which nothing is known here."""
    return recorded.get("host") != socket.gethostname()


def _start(pid: int) -> str | None:
    """The start time of a process in the system's own notation; None if it does not run."""
    if not _PROC.joinpath("self").exists():
        return _start_by_ps(pid)
    try:
        stat = _PROC.joinpath(str(pid), "stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name, in parentheses, may hold spaces
    return None if fields[_STATE] in "ZX" else fields[_START]


def _start_by_ps(pid: int) -> str | None:
    """The same where there is no /proc, as on macOS."""
    command = ["ps", "-o", "state=,lstart=", "-p", str(pid)]
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    state, _, start = found.stdout.strip().partition(" ")
    return None if not start or state.startswith("Z") else " ".join(start.split())


def _boot_id() -> str:
    """The identity of the boot; "" where the system has none, and start times are dates."""
    try:
        return _PROC.joinpath("sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
