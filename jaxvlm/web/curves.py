"""Curves for a page: a few thousand points of each metric, of one run or of several."""

from __future__ import annotations

import csv
import io
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.web.metrics_file import MetricsFile, Series, decimate

_MOST_OPEN = 8  # files whose content stays in memory; a run of 100,000 lines takes 20 MB
_DIGITS = 7


class _Files:
    """The files that were read last, so that each is read once for all pages."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[Path, MetricsFile] = OrderedDict()

    def open(self, path: Path) -> MetricsFile:
        """The reader of a file."""
        with self._lock:
            file = self._files.pop(path, None) or MetricsFile(path)
            self._files[path] = file
            while len(self._files) > _MOST_OPEN:
                self._files.popitem(last=False)
        return file


_FILES = _Files()


def read_curves(path: Path, points: int) -> dict[str, Any]:
    """What `api/run/curves` replies: {cursor, stages: [{name, offset, last}], series: {name: {step, value, stage, x}}}.

    Args:
      path: of a metrics.jsonl.
      points: at most of each series; `metrics_file.decimate` chooses them.
    """
    file = _FILES.open(path)
    with file.lock:
        cursor, offsets = file.read(), file.offsets()
        stages = [
            {"name": name, "offset": offset, "last": last}
            for name, offset, last in zip(file.stages, offsets, file.last, strict=True)
        ]
        series = {name: _points(found, offsets, points) for name, found in file.series.items()}
    return {"cursor": cursor, "stages": stages, "series": series}


def _points(series: Series, offsets: Sequence[int], points: int) -> dict[str, list]:
    step, value, stage = _arrays(series)
    chosen = decimate(value, points)
    step, value, stage = step[chosen], value[chosen], stage[chosen]
    x = step + np.asarray(offsets, np.int64)[stage]
    return {"step": step.tolist(), "value": rounded(value), "stage": stage.tolist(), "x": x.tolist()}


def _arrays(series: Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Copies: an array that is viewed cannot grow."""
    return np.array(series.step, np.int64), np.array(series.value, np.float64), np.array(series.stage, np.int64)


def rounded(values: np.ndarray) -> list[float | None]:
    """Seven digits of each; null for NaN and infinities."""
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]


def compare_curves(runs: Sequence[tuple[str, Path]], points: int) -> dict[str, dict[str, dict[str, list]]]:
    """{metric: {run: {step, x, value, tokens, seconds}}}: tokens and seconds are those since the run's start.

    Args:
      runs: names and metrics.jsonl.
    """
    found: dict[str, dict[str, dict[str, list]]] = {}
    for name, path in runs:
        file = _FILES.open(path)
        with file.lock:
            file.read()
            offsets, used = file.offsets(), _Used(file)
            for metric, series in file.series.items():
                chosen = _points(series, offsets, points)
                x = np.asarray(chosen["x"], np.float64)
                found.setdefault(metric, {})[name] = {
                    **{key: chosen[key] for key in ("step", "x", "value")},
                    "tokens": used.at(x, "tokens"),
                    "seconds": used.at(x, "step_seconds"),
                }
    return found


class _Used:
    """What a run has used up to any step: a metric of each logged step, times the steps since the one before it."""

    def __init__(self, file: MetricsFile):
        self._sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        offsets = np.asarray(file.offsets(), np.int64)
        for name in ("tokens", "step_seconds"):
            if name in file.series:
                step, value, stage = _arrays(file.series[name])
                x = step + offsets[stage]
                steps = np.diff(x, prepend=0)
                self._sums[name] = x.astype(np.float64), np.cumsum(np.nan_to_num(value) * steps)

    def at(self, x: np.ndarray, name: str) -> list[float | None]:
        """The sums at some steps; nulls if the run has no such metric."""
        if name not in self._sums:
            return [None] * len(x)
        places, sums = self._sums[name]
        return rounded(np.interp(x, np.concatenate([[0.0], places]), np.concatenate([[0.0], sums])))


def csv_lines(path: Path) -> Iterator[str]:
    """All values of a metrics.jsonl as CSV, a line for each step of a stage."""
    file = _FILES.open(path)
    with file.lock:
        file.read()
        stages, names = list(file.stages), list(file.series)
        rows: dict[tuple[int, int], dict[str, float]] = {}
        for name, series in file.series.items():
            for step, value, stage in zip(series.step, series.value, series.stage, strict=True):
                rows.setdefault((stage, step), {})[name] = value
    yield _csv_line(["stage", "step", *names])
    for stage, step in sorted(rows):
        row = rows[stage, step]
        yield _csv_line([stages[stage], step, *(row.get(name, "") for name in names)])


def _csv_line(values: Sequence[Any]) -> str:
    # A spreadsheet runs what begins with these; only names of stages and metrics are texts.
    safe = [
        f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value for value in values
    ]
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(safe)
    return line.getvalue()
