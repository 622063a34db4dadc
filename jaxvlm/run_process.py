"""What a run leaves of its process: process.json names it while it runs, exit.json says how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from jaxvlm import processes
from jaxvlm.errors import exit_code, explained, on_a_line
from jaxvlm.files import replace_text
from jaxvlm.process_identity import identity
from jaxvlm.runs import RunFolder


@contextlib.contextmanager
def recorded(folder: RunFolder) -> Iterator[None]:
    """Within it the first process of a run is in its process.json; after it exit.json has code, signal, time, message.

    A process that the system ends leaves no exit.json; what started it may write one (signal: its number, code: null).
    """
    if processes.index():
        yield
        return
    folder.exit_file.unlink(missing_ok=True)
    began = {"command": [sys.executable, *sys.orig_argv[1:]], "cwd": os.getcwd(), "time": round(time.time(), 1)}
    replace_text(folder.process_file, json.dumps(identity(os.getpid()) | began, indent=1) + "\n")
    with processes.on_end(lambda code, message: _save_exit(folder, code, message)):
        try:
            yield
        except BaseException as error:
            _save_exit(folder, exit_code(error), _message(error))
            raise
    _save_exit(folder, 0, "")


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "preempted" if error.code == 75 else ""
    known = explained(error) if isinstance(error, Exception) else None
    return str(known) if known else on_a_line(error)


def _save_exit(folder: RunFolder, code: int, message: str) -> None:
    ended: dict[str, Any] = {"code": code, "signal": None, "time": round(time.time(), 1), "message": message}
    with contextlib.suppress(OSError):  # a full disk does not change how a run ends
        replace_text(folder.exit_file, json.dumps(ended) + "\n")
