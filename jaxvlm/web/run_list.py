"""The table of runs: a line for each folder below the root, whoever started it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.web.glance import look
from jaxvlm.web.paths import MARKS, is_run
from jaxvlm.web.run_state import ACTIVE, RunFiles, read_run, state_of
from jaxvlm.web.texts import as_number

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

_MOST_CACHED = 2000


class Cache:
    """What was read of each run, as long as none of its files changes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[Path, tuple[Any, RunFiles, dict[str, Any]]] = OrderedDict()

    def read(self, path: Path) -> tuple[RunFiles, dict[str, Any]]:
        """The run's small files, and a look at its metrics."""
        signature = _signature(path)
        with self._lock:
            known = self._found.get(path)
        if known is None or known[0] != signature:
            run = read_run(path)
            known = signature, run, look(run.folder.metrics)
            with self._lock:
                self._found[path] = known
                if len(self._found) > _MOST_CACHED:
                    self._found.popitem(last=False)
        return known[1], known[2]


CACHE = Cache()


_SIGNED = (
    *("config.json", "process.json", "exit.json", "ledger.json", "metrics.jsonl", "source.json", "heartbeats/0.json"),
    *("studio.json", "stop.json"),
)


def _signature(path: Path) -> tuple[tuple[int, int, int] | None, ...]:
    """Inode, size and time of the files that a line is made of."""
    return tuple(_stat(f"{path}/{name}") for name in _SIGNED)


def _stat(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def run_names(root: Path) -> Iterator[str]:
    """Names of the runs: ROOT/NAME and ROOT/GROUP/NAME.

    A run may have runs below it only as a group would: a folder that is a run is no group.
    """
    for entry in _folders(root):
        if is_run(root / entry):
            yield entry
        else:
            yield from (f"{entry}/{name}" for name in _folders(root / entry) if is_run(root / entry / name))


def _folders(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def list_runs(studio: Studio) -> dict[str, Any]:
    """What `api/runs` replies: {runs, looked_in, broken}, the runs that changed last first."""
    places = studio.queue.places()
    runs, broken = [], []
    for name in run_names(studio.root):
        if is_export(studio.root / name):
            continue
        problem = problem_of(studio.root / name, name)
        if problem:
            broken.append({"name": name.encode("utf-8", "replace").decode(), "problem": problem})
        else:
            runs.append(summary(studio, name, places))
    runs.sort(key=lambda run: run["updated"] or 0, reverse=True)
    return {"runs": runs, "looked_in": str(studio.root.resolve()), "broken": broken}


def is_export(path: Path) -> bool:
    """Whether a folder is a Hugging Face folder, whose config.json is no recipe."""
    run, _ = CACHE.read(path)
    return run.config is not None and "model_type" in run.config and run.process is None and run.studio is None


def problem_of(path: Path, name: str) -> str:
    """Why a folder cannot be shown as a run; "" if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "the name of the folder is not UTF-8"
    run, _ = CACHE.read(path)
    damaged = [mark for mark, found in zip(MARKS, (run.config, run.process, run.studio), strict=True) if found is None]
    there = [mark for mark in damaged if (path / mark).exists()]
    if there:
        return f"{' and '.join(there)} cannot be read"
    return "" if os.access(path, os.R_OK | os.X_OK) else "the folder cannot be read"


def summary(studio: Studio, name: str, places: dict[str, int] | None = None) -> dict[str, Any]:
    """The line of a run.

    Args:
      name: its path relative to the root.
      places: of `Queue.places`, if the caller has them.
    """
    path = studio.root / name
    run, seen = CACHE.read(path)
    place = (studio.queue.places() if places is None else places).get(name)
    state = state_of(run, queued=place is not None)
    position = _position(run, seen, state)
    return {
        "id": name,
        "name": name.rpartition("/")[2],
        "path": str(path.absolute()),
        "state": state,
        **position,
        "eta_seconds": _eta(position, seen, state),
        **{key: seen[key] for key in ("loss", "heldout_loss", "exact_match", "spark")},
        "host": _host(run),
        "device": _devices(run),
        "started": _started(run),
        "updated": _updated(run),
        "family": _family(run),
        "trainable": _trainable(run),
        "queue_place": place,
    }


def _position(run: RunFiles, seen: dict[str, Any], state: str) -> dict[str, Any]:
    """Stage, step and steps: those of the heartbeat as long as the run goes on, else those of the metrics."""
    beat = run.own_beat or {}
    stage, step, steps = beat.get("stage"), beat.get("step"), beat.get("steps")
    if not stage or not isinstance(step, int) or (state not in (*ACTIVE, "elsewhere") and seen["step"] is not None):
        same = stage == seen["stage"]
        stage, step, steps = seen["stage"] or stage, seen["step"], steps if same else None
    elif stage == seen["stage"]:
        step = max(step, seen["step"])  # while the test runs, the heartbeat has no step
    return {"stage": stage, "step": step, "steps": steps if isinstance(steps, int) else None}


def _eta(position: dict[str, Any], seen: dict[str, Any], state: str) -> float | None:
    """Seconds to the end of the stage."""
    step, steps, rate = position["step"], position["steps"], seen["step_seconds"]
    if state not in ("training", "saving", "evaluating", "compiling") or None in (step, steps, rate):
        return None
    return round(max(0, steps - step) * rate, 1)


def _host(run: RunFiles) -> str | None:
    found = next((found for found in (run.process, run.launcher, run.beat) if found), {})
    return str(found["host"]) if "host" in found else None


def _devices(run: RunFiles) -> str | None:
    devices = (run.studio or {}).get("devices")
    return ", ".join(map(str, devices)) if isinstance(devices, list) else None


def _started(run: RunFiles) -> float | None:
    times = ((run.process or {}).get("time"), (run.studio or {}).get("created"), _mtime(run.folder.path, "config.json"))
    return next((found for time in times if (found := as_number(time)) is not None), None)


def _updated(run: RunFiles) -> float | None:
    names = ("metrics.jsonl", "heartbeats/0.json", "exit.json", "studio.json", "config.json")
    return max((time for name in names if (time := _mtime(run.folder.path, name)) is not None), default=None)


def _mtime(folder: Path, name: str) -> float | None:
    found = _stat(f"{folder}/{name}")
    return round(found[2] / 1e9, 1) if found else None


def _family(run: RunFiles) -> str | None:
    model = (run.config or {}).get("model")
    family = model.get("family") if isinstance(model, dict) else None
    return family if isinstance(family, str) else None


def _trainable(run: RunFiles) -> str | None:
    """How the last stage trains: "lora" if any part has adapters, "full" if the decoder trains, else what does."""
    stages = (run.config or {}).get("stage")
    last = stages.get(run.stages[-1]) if isinstance(stages, dict) and run.stages else None
    parts = last.get("parts") if isinstance(last, dict) else None
    if not isinstance(parts, dict):
        return None
    policies = {part: policy for part, policy in parts.items() if isinstance(policy, str)}
    if "lora" in policies.values():
        return "lora"
    trained = [part for part, policy in policies.items() if policy == "full"]
    return "full" if "language" in trained else ", ".join(trained) or None
