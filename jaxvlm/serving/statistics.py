"""Counters of the scheduler, and how many programs a thread has compiled."""

from __future__ import annotations

import bisect
import copy
import dataclasses
import threading
from collections import Counter

import jax

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclasses.dataclass
class Histogram:
    """How often a number of seconds was at most each of some bounds, as Prometheus counts it.

    Attributes:
      counts: of values up to each bound and over the one before it; the last is of those over all bounds.
      total: sum of all values.
    """

    bounds: tuple[float, ...] = _SECONDS
    counts: list[int] = dataclasses.field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    total: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Counts a value, as often as it occurred."""
        self.counts[bisect.bisect_left(self.bounds, seconds)] += times
        self.total += seconds * times


@dataclasses.dataclass
class Stats:
    """The state of a scheduler, and what it has done since it was made.

    Attributes:
      slots, slots_used: rows of the decode program, and those that are being filled or answered.
      queued: requests that wait for a slot.
      finished: requests by their reason, see `FinishReason`; those that `submit` refused are not among them.
      prompt_tokens, cached_tokens, completion_tokens: of requests that have ended; see `Finished`.
      image_hits, image_misses: images whose features were cached, and that were encoded.
      prefix_hits, prefix_misses: prompts of which a beginning was cached, and that were read whole.
      image_cache_bytes, prefix_cache_bytes: sizes of the two caches.
      compilations: programs compiled since the scheduler is ready; a number over 0 is a bug.
      queue_wait: seconds from `submit` to a slot.
      time_to_first_token: seconds from `submit` to the first token.
      time_per_token: seconds between two tokens of an answer, the mean of each answer's pieces.
    """

    slots: int = 0
    slots_used: int = 0
    queued: int = 0
    finished: Counter[str] = dataclasses.field(default_factory=Counter)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    image_hits: int = 0
    image_misses: int = 0
    prefix_hits: int = 0
    prefix_misses: int = 0
    image_cache_bytes: int = 0
    prefix_cache_bytes: int = 0
    compilations: int = 0
    queue_wait: Histogram = dataclasses.field(default_factory=Histogram)
    time_to_first_token: Histogram = dataclasses.field(default_factory=Histogram)
    time_per_token: Histogram = dataclasses.field(default_factory=Histogram)

    def copy(self) -> Stats:
        """A snapshot."""
        return copy.deepcopy(self)


_compiled: Counter[int] = Counter()  # thread -> programs
_is_listening = threading.Event()


def count_compilations(thread: int) -> int:
    """How many programs a thread has compiled, or read from the cache on disk, since the first call.

    Args:
      thread: of `threading.get_ident`.
    """
    if not _is_listening.is_set():
        _is_listening.set()
        jax.monitoring.register_event_duration_secs_listener(_note)
    return _compiled[thread]


def _note(event: str, duration_secs: float, **_: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled[threading.get_ident()] += 1
