"""The newest values of a run, and its loss in forty numbers, from pieces of metrics.jsonl, as a list has many runs."""

from __future__ import annotations

import contextlib
import os
import re
import statistics
from pathlib import Path
from typing import Any

from jaxvlm.web.metrics_file import parse_line
from jaxvlm.web.texts import as_number

SPARK = 40  # numbers
_TAIL = 2**18  # bytes in which the newest values are looked for
_PIECE = 2**11  # bytes of a place that has a line or two
_RATE_BYTES, _RATES = 2**13, 20  # steps whose median is the rate
# Without reading the line as JSON, which takes ten times as long; only finite numbers match.
_LOSS, _SECONDS = (
    re.compile(rb'"%s": ?(-?\d+(?:\.\d*)?(?:[eE][-+]?\d{1,2})?)[,}]' % name) for name in (b"loss", b"step_seconds")
)


def look(path: Path) -> dict[str, Any]:
    """{stage, step, loss, heldout_loss, exact_match, step_seconds, spark} of a metrics.jsonl; null where there is none.

    `spark` are at most `SPARK` losses from the first step to the last.
    """
    tail, losses = b"", []
    with contextlib.suppress(OSError), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        tail = _read(file.fileno(), max(0, size - _TAIL), size)
        losses = _spread(tail) if size <= SPARK * _PIECE else _sampled(file.fileno(), size)
    last = next((found for line in reversed(tail[-_RATE_BYTES:].splitlines()) if (found := parse_line(line))), {})
    return {
        "stage": last.get("stage"),
        "step": last.get("step"),
        "loss": _newest(tail, "loss"),
        "heldout_loss": _newest(tail, "heldout_loss"),
        "exact_match": _newest(tail, "heldout_exact_match"),
        "step_seconds": _rate(tail[-_RATE_BYTES:]),
        "spark": losses,
    }


def _read(descriptor: int, start: int, end: int) -> bytes:
    """The whole lines in a piece of the file."""
    content = os.pread(descriptor, end - start, start)
    return content[content.find(b"\n") + 1 if start else 0 : content.rfind(b"\n") + 1]


def _newest(content: bytes, name: str) -> float | None:
    """The last value of a metric."""
    key, place = b'"%s":' % name.encode(), len(content)
    while (place := content.rfind(key, 0, place)) >= 0:
        line = content[content.rfind(b"\n", 0, place) + 1 : content.find(b"\n", place)]
        found = parse_line(line)
        if found and name in found:
            return as_number(found[name])
    return None


def _rate(content: bytes) -> float | None:
    known = [float(seconds) for seconds in _SECONDS.findall(content)[-_RATES:]]
    return statistics.median(known) if known else None


def _spread(content: bytes) -> list[float]:
    losses = _LOSS.findall(content)
    count = min(SPARK, len(losses))
    return [_short(losses[i * (len(losses) - 1) // max(1, count - 1)]) for i in range(count)]


def _sampled(descriptor: int, size: int) -> list[float]:
    """A loss from each of forty places of a large file."""
    chosen: list[bytes] = []
    for i in range(SPARK):
        start = i * (size - _PIECE) // (SPARK - 1)
        if match := _LOSS.search(_read(descriptor, start, start + _PIECE)):
            chosen.append(match[1])
    chosen[-1:] = _LOSS.findall(_read(descriptor, size - _PIECE, size))[-1:]  # the newest one
    return list(map(_short, chosen))


def _short(loss: bytes) -> float:
    return float(f"{float(loss):.4g}")
