"""A trace of some steps for TensorBoard's profiler, XProf or Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax

from jaxvlm import processes


class Profile:
    """Traces the steps from the first to the second number of `steps`, on process 0; () traces none."""

    def __init__(self, folder: Path, steps: tuple[int, ...]):
        self._folder = folder
        self._first, self._last = steps if steps and processes.index() == 0 else (0, 0)
        self._running, self._done = False, 0

    def before(self, step: int) -> None:
        """Call before each step."""
        if step == self._first:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def after(self, step: int, results: Any) -> None:
        """Call after each step; waits for its results if it is the last one traced."""
        self._done = step
        if self._running and step >= self._last:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a running trace. A failed write, on a full disk for one, does not end the run."""
        if not self._running:
            return
        self._running = False
        try:
            jax.profiler.stop_trace()
            processes.log("", f"profile of steps {self._first} to {self._done}: {self._folder}")
        except (RuntimeError, OSError) as error:
            processes.log("", f"ERROR: the profile could not be written to {self._folder}: {error}")
