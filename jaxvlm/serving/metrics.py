"""The numbers of a server for Prometheus: of HTTP, and of the scheduler."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

if TYPE_CHECKING:
    from jaxvlm.serving import statistics

CONTENT_TYPE = exposition.CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_GAUGES = {
    "slots": "Answers that can be written at once.",
    "slots_used": "Answers that are being written.",
    "queued": "Answers that wait for a slot.",
    "image_cache_bytes": "Size of the cached features of images.",
    "prefix_cache_bytes": "Size of the cached beginnings of prompts.",
}
_COUNTERS = {
    "prompt_tokens": "Tokens of prompts of ended answers, features of images among them.",
    "cached_tokens": "Those of them that came from the cache.",
    "completion_tokens": "Tokens of ended answers.",
    "image_hits": "Images whose features were cached.",
    "image_misses": "Images that were encoded.",
    "prefix_hits": "Prompts of which a beginning was cached.",
    "prefix_misses": "Prompts that were read whole.",
    "compilations": "Programs compiled since the server is ready; more than 0 is a bug.",
}
_HISTOGRAMS = {
    "queue_wait": "Seconds from the arrival of a request to its slot.",
    "time_to_first_token": "Seconds from the arrival of a request to its first token.",
    "time_per_token": "Seconds between two tokens of an answer.",
}


class Metrics:
    """Counts requests, and writes all numbers as Prometheus reads them. No text of a request is a label.

    Attributes:
      in_flight: requests of which the reply has not ended.
    """

    def __init__(self, stats: Callable[[], statistics.Stats]):
        """Takes what gives the scheduler's numbers."""
        self._registry = CollectorRegistry()
        self._registry.register(_SchedulerCollector(stats))
        self._requests = Counter(
            "jaxvlm_http_requests",
            "Requests by path and status; 499: the client left before its answer was complete.",
            ["path", "status"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "jaxvlm_http_request_seconds",
            "Seconds from the headers of a request to the end of its reply.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.in_flight = Gauge("jaxvlm_http_in_flight", "Requests that are being answered.", registry=self._registry)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Counts a request that has ended; `path` is one of few."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        return exposition.generate_latest(self._registry)


class _SchedulerCollector:
    """Reads the scheduler's numbers when they are asked for."""

    def __init__(self, stats: Callable[[], statistics.Stats]):
        self._stats = stats

    def describe(self) -> list[Metric]:
        """Nothing: the scheduler need not be ready when it is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yields the families of one snapshot."""
        stats = self._stats()
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(f"jaxvlm_{name}", text, value=getattr(stats, name))
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"jaxvlm_{name}", text, value=getattr(stats, name))
        answers = CounterMetricFamily("jaxvlm_answers", "Answers that ended, by reason.", labels=["reason"])
        for reason in ("stop", "length", "cancelled", "error"):
            answers.add_metric([reason], stats.finished.get(reason, 0))
        yield answers
        for name, text in _HISTOGRAMS.items():
            histogram = getattr(stats, name)
            bounds = [*map(str, histogram.bounds), "+Inf"]
            buckets = list(zip(bounds, itertools.accumulate(histogram.counts), strict=True))
            yield HistogramMetricFamily(f"jaxvlm_{name}_seconds", text, buckets=buckets, sum_value=histogram.total)
