"""Tasks: commands that the studio starts besides runs, such as a check of data. Each is a folder; none is in memory.

ROOT/.studio/tasks/ID/
  task.json    {id, kind, about, command, environment, started, launcher}
  log.txt      the command's output
  exit.json    {code, signal, time}, once it has ended
  cancelled    somebody has cancelled it
  and what the command itself writes, such as result.json
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxvlm.files import replace_text
from jaxvlm.process_identity import is_alive
from jaxvlm.web.launcher import launch, shown_environment, stop_launcher
from jaxvlm.web.problem import Problem
from jaxvlm.web.texts import read_json, read_tail

TAIL_LINES = 40
_TAIL_BYTES = 2**14
_KEPT = 200  # ended tasks; older ones are removed
_GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL
# tqdm's line: "align:  42%|####   | 21/50 [00:01<00:02, 20.1step/s]"; the text before it may be missing.
_PROGRESS = re.compile(
    r"(?:(?P<text>[^\r\n|]*?):? +)?\d+%\|[^|]*\| *(?P<n>[\d,.]+)(?P<k>[kMG]?)/(?P<total>[\d,.]+)(?P<l>[kMG]?) \["
)
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


class Tasks:
    """The tasks of a root."""

    def __init__(self, root: Path):
        """Writes nothing.

        Args:
          root: the folder of the runs.
        """
        self._folder = root / ".studio" / "tasks"

    def start(
        self,
        kind: str,
        command: Sequence[str] | Callable[[Path], Sequence[str]],
        about: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Starts a command in the studio's working directory, and returns the task's ID.

        Args:
          kind: one word, such as "plan".
          command: program and arguments; or a function that makes them of the task's folder.
          about: what a page shows of it, ready for JSON.
          environment: variables that are added.

        Raises:
          Problem: 500: it cannot be started.
        """
        self._remove_old()
        task = f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        folder = self._folder / task
        folder.mkdir(parents=True)
        entry: dict[str, Any] = {
            "id": task,
            "kind": kind,
            "about": dict(about),
            "environment": shown_environment(environment or {}),
            "started": round(time.time(), 1),
            "launcher": None,
        }
        try:
            arguments = [*(command(folder) if callable(command) else command)]
            entry["command"] = arguments
            _save(folder, entry)
        except OSError:  # the disk is full, say
            shutil.rmtree(folder, ignore_errors=True)
            raise
        log, end = folder / "log.txt", folder / "exit.json"
        entry["launcher"] = launch(arguments, Path.cwd(), log, end, environment or {}, grace=_GRACE_SECONDS)
        _save(folder, entry)
        return task

    def folder(self, task: str) -> Path:
        """The folder of a task.

        Raises:
          Problem: 404: there is none.
        """
        if re.fullmatch(r"[a-z_]+-\d{8}-\d{6}-[0-9a-f]{8}", task) and (self._folder / task / "task.json").is_file():
            return self._folder / task
        raise Problem(404, "no_task", f"there is no task {task!r}", task=task)

    def get(self, task: str) -> dict[str, Any]:
        """A task as pages receive it: {id, kind, about, state, code, started, ended, log_tail, progress}.

        `state` is running, done, failed or cancelled; `code` and `ended` are null as long as it runs, and `code` also
        after a signal. `progress` is {n, total, text} of the newest progress bar in the log, or null.

        Raises:
          Problem: 404: there is none.
        """
        folder = self.folder(task)
        entry = read_json(folder / "task.json") or {}
        ended = read_json(folder / "exit.json")
        tail = read_tail(folder / "log.txt", _TAIL_BYTES)
        return {
            "id": task,
            "kind": entry.get("kind", task.split("-")[0]),
            "about": entry.get("about", {}),
            "state": _state(folder, entry, ended),
            "code": ended.get("code") if ended else None,
            "started": entry.get("started"),
            "ended": ended.get("time") if ended else None,
            "log_tail": "\n".join(tail.splitlines()[-TAIL_LINES:]),
            "progress": progress_of(tail),
        }

    def list(self) -> Sequence[dict[str, Any]]:
        """All tasks, the newest first."""
        return [self.get(task) for task in self._ids()]

    def running(self, kinds: Sequence[str]) -> Sequence[dict[str, Any]]:
        """Those of some kinds that run, without reading the others."""
        some = [task for task in self._ids() if task.split("-")[0] in kinds]
        return [found for task in some if (found := self.get(task))["state"] == "running"]

    def cancel(self, task: str) -> None:
        """Ends a task's command and what it has started: SIGTERM, and SIGKILL seconds later.

        Raises:
          Problem: 404: there is none; 409: it has ended.
        """
        folder = self.folder(task)
        launcher = (read_json(folder / "task.json") or {}).get("launcher") or {}
        (folder / "cancelled").touch()  # first: the command may end at once
        if (folder / "exit.json").exists() or not stop_launcher(launcher):
            (folder / "cancelled").unlink()
            raise Problem(409, "task_ended", f"the task {task} has ended already", task=task)

    def _ids(self) -> Sequence[str]:
        if not self._folder.is_dir():
            return []
        found = [path.name for path in self._folder.iterdir() if (path / "task.json").is_file()]
        return sorted(found, key=lambda name: name.split("-")[1:], reverse=True)

    def _remove_old(self) -> None:
        for task in self._ids()[_KEPT:]:
            if self.get(task)["state"] != "running":
                shutil.rmtree(self._folder / task, ignore_errors=True)


def _state(folder: Path, entry: dict[str, Any], ended: dict[str, Any] | None) -> str:
    launcher = entry.get("launcher")
    starting = launcher is None and time.time() - (entry.get("started") or 0) < 60
    if ended is None and (starting or (launcher and is_alive(launcher))):
        return "running"
    if ended is None:  # the launcher may have written it since
        ended = read_json(folder / "exit.json") or {}
    if ended.get("code") == 0:
        return "done"
    return "cancelled" if (folder / "cancelled").exists() else "failed"


def progress_of(text: str) -> dict[str, Any] | None:
    """The newest progress bar of tqdm in a text, as {n, total, text}; None: there is none."""
    found = None
    for found in _PROGRESS.finditer(text):  # noqa: B007 - the last one
        pass
    if found is None:
        return None
    n, total = (_number(found[a], found[b]) for a, b in (("n", "k"), ("total", "l")))
    return {"n": n, "total": total, "text": (found["text"] or "").strip()}


def _number(digits: str, unit: str) -> float:
    return float(digits.replace(",", "")) * _UNITS[unit]


def _save(folder: Path, entry: dict[str, Any]) -> None:
    replace_text(folder / "task.json", json.dumps(entry, indent=1) + "\n")
    os.chmod(folder / "task.json", 0o600)
