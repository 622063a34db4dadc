"""Runs that wait for devices: ROOT/.studio/queue/N.json, started in order, one at a time for each device."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.files import replace_text
from jaxvlm.runs import RunFolder
from jaxvlm.web.paths import run_folder
from jaxvlm.web.problem import Problem
from jaxvlm.web.run_state import ACTIVE, log_file, read_run, state_of
from jaxvlm.web.texts import as_number, read_json

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

PERIOD_SECONDS = 3.0
_DEVICE_TASKS = ("chat", "serve", "evaluate")  # kinds of tasks that have the devices


class Queue:
    """The queue of a root. Its entries are files, so that a new server continues it."""

    def __init__(self, studio: Studio):
        """Writes nothing."""
        self._studio = studio
        self._folder = studio.root / ".studio" / "queue"
        self._lock = threading.Lock()

    def add(self, run: str) -> int:
        """Puts a run at the end; returns its ID."""
        with self._lock:
            entries = self._entries()
            number = max((entry["id"] for entry in entries), default=0) + 1
            order = max((entry["order"] for entry in entries), default=0) + 1
            self._folder.mkdir(parents=True, exist_ok=True)
            self._save({"id": number, "run": run, "order": order, "created": round(time.time(), 1)})
        return number

    def places(self) -> dict[str, int]:
        """The place of each run that waits, from 1."""
        return {entry["run"]: place for place, entry in enumerate(self._entries(), 1)}

    def to_dict(self) -> dict[str, Any]:
        """What `api/queue` replies: {items, running}."""
        items = [
            {"id": entry["id"], "run": entry["run"], "place": place, "about": {"created": entry.get("created")}}
            for place, entry in enumerate(self._entries(), 1)
        ]
        return {"items": items, "running": self.holders(None)}

    def move(self, number: int, place: int) -> None:
        """Moves an entry to a place, from 1; those behind it follow.

        Raises:
          Problem: 404: there is no such entry.
        """
        with self._lock:
            entries = self._entries()
            moved = self._find(entries, number)
            entries.remove(moved)
            entries.insert(max(0, place - 1), moved)
            for order, entry in enumerate(entries, 1):
                if entry["order"] != order:
                    self._save(entry | {"order": order})

    def remove(self, number: int) -> None:
        """Takes an entry out; the folder of its run stays.

        Raises:
          Problem: 404: there is no such entry.
        """
        with self._lock:
            self._find(self._entries(), number)
            self._path(number).unlink(missing_ok=True)

    def holders(self, devices: list[int] | None) -> list[dict[str, Any]]:
        """Who has any of these devices: [{kind, id, name, devices}], runs and tasks with a process on this machine.

        Args:
          devices: None: all.
        """
        return [entry for entry in self._busy() if _meet(devices, entry["devices"])]

    def advance(self) -> list[str]:
        """Starts the runs whose devices are free, in order; returns their names.

        A run that cannot be started leaves the queue, with the reason in its log; it blocks nobody.
        """
        with self._lock:
            entries = self._entries()
            busy = [entry["devices"] for entry in self._busy()] if entries else []
            started = []
            for entry in entries:
                devices = self._devices(entry["run"])
                if not any(_meet(devices, taken) for taken in busy):
                    self._start(entry)
                    started.append(entry["run"])
                busy.append(devices)  # also of one that waits: nobody overtakes it
        return started

    def _start(self, entry: dict[str, Any]) -> None:
        from jaxvlm.web.control import launch_run

        try:
            folder = run_folder(self._studio, entry["run"])
        except Problem as problem:  # somebody has removed it
            print(f"warning: queue: {problem.message}", file=sys.stderr, flush=True)
            self._path(entry["id"]).unlink(missing_ok=True)
            return
        try:
            if (read_run(folder).studio or {}).get("launcher") is None:  # else the server ended before the last line
                launch_run(self._studio, entry["run"])
        except (Problem, OSError, KeyError) as error:
            self._fail(folder, str(error))
        self._path(entry["id"]).unlink(missing_ok=True)

    def _fail(self, folder: Path, reason: str) -> None:
        """Leaves the reason where that of any other run would be."""
        print(f"warning: queue: {folder} cannot be started: {reason}", file=sys.stderr, flush=True)
        with contextlib.suppress(OSError):
            with log_file(folder).open("a") as log:
                log.write(f"error: {reason}\n")
            replace_text(
                RunFolder(folder).exit_file, json.dumps({"code": 1, "signal": None, "time": round(time.time(), 1)})
            )

    def _busy(self) -> list[dict[str, Any]]:
        from jaxvlm.web.run_list import run_names

        root, found = self._studio.root, []
        for name in run_names(root):
            run = read_run(root / name)
            if (run.process or run.launcher) and state_of(run) in ACTIVE:
                found.append({"kind": "run", "id": name, "name": name, "devices": self._devices(name)})
        for task in self._studio.tasks.running(_DEVICE_TASKS):
            found.append({"kind": task["kind"], "id": task["id"], "name": task["id"], "devices": None})
        return found

    def _devices(self, run: str) -> list[int] | None:
        found = (read_run(self._studio.root / run).studio or {}).get("devices")
        return found if isinstance(found, list) else None

    def _entries(self) -> list[dict[str, Any]]:
        paths = self._folder.glob("*.json") if self._folder.is_dir() else ()
        found = [entry for path in paths if path.stem.isdecimal() and (entry := _entry(path))]
        return sorted(found, key=lambda entry: (entry["order"], entry["id"]))

    def _find(self, entries: list[dict[str, Any]], number: int) -> dict[str, Any]:
        for entry in entries:
            if entry["id"] == number:
                return entry
        raise Problem(404, "not_queued", f"the queue has no entry {number}", id=number)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.json"

    def _save(self, entry: dict[str, Any]) -> None:
        replace_text(self._path(entry["id"]), json.dumps(entry) + "\n")


def _entry(path: Path) -> dict[str, Any] | None:
    found = read_json(path) or {}
    if not isinstance(found.get("run"), str):
        return None
    order = as_number(found.get("order"))
    return found | {"id": int(path.stem), "order": int(path.stem) if order is None else order}


def _meet(some: list[int] | None, others: list[int] | None) -> bool:
    return some is None or others is None or bool({*some} & {*others})


class QueueThread(threading.Thread):
    """Advances the queue while the server runs."""

    def __init__(self, queue: Queue):
        """Takes the queue."""
        super().__init__(name="queue", daemon=True)
        self._queue, self._ended = queue, threading.Event()

    def run(self) -> None:
        """Looks every few seconds."""
        while not self._ended.wait(PERIOD_SECONDS):
            try:
                for name in self._queue.advance():
                    print(f"queue: started {name}", file=sys.stderr, flush=True)
            except Exception as error:  # a full disk: the next look may work
                print(f"warning: queue: {error}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Ends the thread."""
        self._ended.set()
        self.join()
