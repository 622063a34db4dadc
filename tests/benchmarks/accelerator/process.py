"""The parent's end of a worker: a process that holds one model, and ends with it."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[3]


class WorkerError(Exception):
    """The worker could not do it; the message says why."""


class OutOfMemoryError(WorkerError):
    """A smaller setting may work."""


class OutOfTimeError(WorkerError):
    """The time of the whole benchmark is over."""


class Worker:
    """One side of a measurement."""

    def __init__(self, side: str, deadline: float, log: IO[str]):
        """Starts it.

        Args:
          side: a key of `worker.SIDES`.
          deadline: of `time.monotonic`; no answer is waited for longer.
          log: the file of its other output.
        """
        self.side, self._deadline = side, deadline
        command = [sys.executable, "-m", "tests.benchmarks.accelerator.worker", side]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")  # it ended

    def ask(self, what: str, **values: Any) -> Any:
        """The value of its answer.

        Raises:
          OutOfMemoryError, OutOfTimeError, WorkerError: there is none.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what} | values) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=max(0.0, self._deadline - time.monotonic()))
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            self.close()
            raise OutOfTimeError("the minutes are over") from None
        if not line:
            # The system's killer for want of memory leaves no message.
            code = self._process.wait()
            raise (OutOfMemoryError if code == -9 else WorkerError)(
                f"the process of {self.side} ended with code {code}"
            )
        answer = json.loads(line)
        if "error" in answer:
            raise (OutOfMemoryError if answer["is_out_of_memory"] else WorkerError)(answer["error"])
        return answer["value"]

    def close(self) -> None:
        """Ends it, which frees the device's memory."""
        self._process.kill()
        self._process.wait()
