"""Observes a run: a heartbeat file for each process, reports of slow steps, and the time of each phase."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxvlm import processes
from jaxvlm.files import replace_text

_BEAT_SECONDS = 2.0
_SLOW = 10  # times the median
_SLOW_SECONDS = 2.0  # minimum absolute slowness of a reported step
_LEAST_STEPS = 5  # before the median is used
PHASES = {
    "start": "starting",
    "data": "waiting for data",
    "compile": "compiling",
    "save": "saving",
    "evaluate": "evaluating",
}


class Watch:
    """Tracks the phase of this process: start, data, compile, step, save, evaluate, done.

    A thread writes `heartbeats/I.json` (I: the process) every two seconds: process, host, pid, stage, phase, step, the
    steps of the stage, the seconds in that phase, and the time. Stage and steps are null before the first stage.
    It also detects lost processes.
    """

    def __init__(self, heartbeat: Path):
        self._path = heartbeat
        self._lock = threading.Lock()
        self._phase, self._step, self._since = "start", 0, time.monotonic()
        self._stage: str | None = None
        self._steps: int | None = None  # of the stage
        self._spent: dict[str, float] = defaultdict(float)  # seconds in each phase
        self._rates: deque[float] = deque(maxlen=100)  # seconds a step
        self._done_step, self._done_busy = 0, 0.0  # the last completed step, and `_busy` at that time
        self._interval, self._told = (
            1,
            False,
        )  # steps between completed ones, and whether the current one was reported as slow
        self._peers = processes.Peers()
        self._ended = threading.Event()
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def phase(self, name: str, step: int, hidden: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Enters a phase; returns to the previous one at the end.

        Args:
          hidden: called at the end; True if the devices computed all the time, which then counts as step time.
        """
        before = self._enter(name, step)
        try:
            yield
        except Exception as error:
            error.add_note(f"while {PHASES.get(name, 'training')}, at step {step}")
            raise
        finally:
            self._enter(before, step, "step" if hidden() else name)

    def progressed(self, step: int) -> None:
        """Reports that a step, and those before it, are complete."""
        with self._lock:
            busy = self._busy()
            if step > self._done_step and self._done_step:
                self._rates.append((busy - self._done_busy) / (step - self._done_step))
                self._interval = step - self._done_step
            self._done_step, self._done_busy, self._told = step, busy, False

    def begin_stage(self, name: str, steps: int) -> None:
        """Starts a stage of that many steps: they are counted from 1, with new times."""
        with self._lock:
            self._stage, self._steps = name, steps
            self._rates.clear()
            self._reset()

    def shares(self) -> dict[str, float]:
        """The share of each phase in the time since the start; the rest is training."""
        with self._lock:
            spent = self._now()
        whole = sum(spent.values()) or 1.0
        return {name: spent.get(name, 0.0) / whole for name in PHASES}

    def summary(self) -> str:
        """The shares as text."""
        return ", ".join(f"{share:.1%} {PHASES[name]}" for name, share in self.shares().items())

    def close(self) -> None:
        """Reports that this process is done."""
        self._ended.set()
        self._thread.join()
        self._enter("done", self._step)
        with contextlib.suppress(Exception):
            self._beat()

    def _enter(self, name: str, step: int, spent_on: str = "") -> str:
        with self._lock:
            now, before = time.monotonic(), self._phase
            self._spent[spent_on or before] += now - self._since
            self._phase, self._step, self._since = name, step, now
            return before

    def _reset(self) -> None:
        self._done_step, self._done_busy, self._interval, self._told = 0, self._busy(), 1, False

    def _now(self) -> dict[str, float]:
        spent = dict(self._spent)
        spent[self._phase] = spent.get(self._phase, 0.0) + time.monotonic() - self._since
        return spent

    def _busy(self) -> float:
        """Seconds spent waiting for a step or its data."""
        spent = self._now()
        return spent.get("step", 0.0) + spent.get("data", 0.0)

    def _run(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            try:
                self._beat()
            except Exception as error:  # a full disk, a slow coordinator: the next beat may work
                if processes.count() > 1 and not isinstance(error, OSError):
                    print(f"warning: heartbeat: {str(error)[:200]}", file=sys.stderr)

    def _beat(self) -> None:
        with self._lock:
            own: dict[str, Any] = {
                "process": processes.index(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "stage": self._stage,
                "phase": self._phase,
                "step": self._step,
                "steps": self._steps,
                "phase_seconds": round(time.monotonic() - self._since, 1),
                "time": round(time.time(), 1),
            }
        everyone = self._peers.tell(own)
        if processes.index() == 0 and self._phase in ("data", "step"):
            self._report_slow(everyone)
        replace_text(self._path, json.dumps(own) + "\n")

    def _report_slow(self, everyone: dict[int, dict[str, Any]]) -> None:
        with self._lock:
            if self._told or len(self._rates) < _LEAST_STEPS:
                return
            median = statistics.median(self._rates)
            taken = (self._busy() - self._done_busy) / self._interval
            if taken < max(_SLOW_SECONDS, _SLOW * median):
                return
            self._told = True
        where = "; ".join(
            f"process {i} on {beat.get('host')}: {beat.get('phase')} of step {beat.get('step')} "
            f"for {beat.get('phase_seconds', 0):.0f} s"
            for i, beat in sorted(everyone.items())
        )
        print(
            f"\nslow: step {self._step} has taken {taken:.1f} s, {taken / median:.0f} times the median of "
            f"{median:.2g} s. {where}",
            file=sys.stderr,
            flush=True,
        )
