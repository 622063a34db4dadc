"""Preemption: SIGTERM, and a cloud's notice of it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from jax.experimental import multihost_utils

from jaxvlm import processes


class StartAgain(SystemExit):
    """The run was preempted and has saved; its exit code asks to be started again (75, EX_TEMPFAIL)."""

    def __init__(self) -> None:
        super().__init__(75)


class Preemption:
    """Handles SIGTERM. Within `held` the step is finished first; outside of it the process exits at once.

    On several processes jax receives it, and all of them agree on the step after which they stop.
    """

    def __init__(self) -> None:
        self._told = self._held = False
        self._stages = 0  # steps of earlier stages: jax needs a step number that grows over all stages
        self._before: Any = None

    def __enter__(self) -> Preemption:
        if processes.count() == 1:
            with contextlib.suppress(ValueError):  # not in the main thread, which alone receives signals
                self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @contextlib.contextmanager
    def held(self, steps: int) -> Iterator[None]:
        """For a stage of that many steps."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
            self._stages += steps

    def reached(self, step: int) -> bool:
        """Whether the run stops after this step; called after each step on every process."""
        if processes.count() == 1:
            return self._told
        return multihost_utils.reached_preemption_sync_point(self._stages + step)

    def check(self) -> None:
        """Ends the run if it was preempted in the last step of a stage; called between stages on every process."""
        self._stages += 1  # jax counts it as a step
        if self.reached(0):
            raise StartAgain

    def _hear(self, *_: Any) -> None:
        self._told = True
        if not self._held:
            raise StartAgain
