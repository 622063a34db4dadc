"""The state of a run, from what is in its folder and from whether its process is alive. Nothing is kept in memory."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from jaxvlm.process_identity import identity, is_alive, is_elsewhere
from jaxvlm.runs import RunFolder
from jaxvlm.web.texts import as_number, read_json

SILENT_SECONDS = 30.0  # without a heartbeat, which is written every two seconds
ACTIVE = ("starting", "compiling", "training", "saving", "evaluating", "silent")  # with a process on this machine
ENDED = ("done", "paused", "stopped", "mistake", "crashed", "killed", "lost")
_OF_PHASE = {"start": "starting", "compile": "compiling", "save": "saving", "evaluate": "evaluating", "done": "saving"}
_OF_CODE = {0: "done", 75: "paused", 130: "stopped", 2: "mistake"}
_SIGINT, _SIGTERM = 2, 15


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What the small files of a run hold; None for one that is missing or damaged.

    Attributes:
      folder: of the run.
      config: the resolved recipe.
      process: process.json, the identity of the training process.
      studio: studio.json, how the studio started the run.
      ended: exit.json.
      beat: the heartbeat of process 0.
      ledger: the ledger of each stage that is over.
      stopping: stop.json, somebody's wish that this process ends.
    """

    folder: RunFolder
    config: dict[str, Any] | None
    process: dict[str, Any] | None
    studio: dict[str, Any] | None
    ended: dict[str, Any] | None
    beat: dict[str, Any] | None
    ledger: dict[str, Any] | None
    stopping: dict[str, Any] | None

    @property
    def stages(self) -> list[str]:
        """The recipe's stages, in order."""
        found = (self.config or {}).get("stages")
        return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []

    @property
    def launcher(self) -> dict[str, Any] | None:
        """The launcher's identity, with `pgid` and `child`; None if the studio has not started the run."""
        found = (self.studio or {}).get("launcher")
        return found if isinstance(found, dict) else None

    @property
    def child(self) -> dict[str, Any] | None:
        """The identity of the command that the launcher started."""
        found = (self.launcher or {}).get("child")
        return found if isinstance(found, dict) else None

    @property
    def own_beat(self) -> dict[str, Any] | None:
        """The heartbeat, unless it was left by an earlier process."""
        if self.beat is None or self.process is None:
            return self.beat if self.launcher is None else None
        return self.beat if self.beat.get("pid") == self.process.get("pid") else None

    def anything_runs(self) -> bool:
        """Whether its process, or what waits for its end, is alive on this machine."""
        return any(process and is_alive(process) for process in (self.process, self.launcher, self.child))

    def running(self) -> dict[str, Any] | None:
        """The identity of the process to send signals to; None: none is alive on this machine."""
        for process in (self.process, self.child):
            if process and is_alive(process):
                return process
        return None


def studio_file(folder: Path) -> Path:
    """The file with what the studio knows of a run that it started."""
    return folder / "studio.json"


def log_file(folder: Path) -> Path:
    """The output of a run that the studio started."""
    return folder / "studio.log"


def stop_file(folder: Path) -> Path:
    """The file with somebody's wish that a run ends."""
    return folder / "stop.json"


def read_run(path: Path) -> RunFiles:
    """Reads the small files of a run."""
    folder = RunFolder(path)
    return RunFiles(
        folder,
        read_json(folder.config_file),
        read_json(folder.process_file),
        read_json(studio_file(path)),
        read_json(folder.exit_file),
        read_json(folder.heartbeat(0)),
        read_json(folder.ledger_file),
        read_json(stop_file(path)),
    )


def state_of(run: RunFiles, *, queued: bool = False) -> str:
    """The state of a run, one word of `ACTIVE`, `ENDED`, "queued" or "elsewhere".

    Args:
      queued: whether the run waits in the queue.
    """
    if queued:
        return "queued"
    if run.ended is not None:
        return _of_exit(run.ended)
    known = [process for process in (run.process, run.launcher) if process]
    if not known:
        return _without_process(run)
    if run.anything_runs():
        return _of_beat(run.own_beat)
    return "elsewhere" if is_elsewhere(known[0]) else "lost"


def _of_exit(ended: dict[str, Any]) -> str:
    if ended.get("signal") is not None:
        return "stopped" if ended["signal"] in (_SIGINT, _SIGTERM) else "killed"
    code = ended.get("code")
    return _OF_CODE.get(code, "crashed") if isinstance(code, int) else "crashed"


def _of_beat(beat: dict[str, Any] | None) -> str:
    if beat is None:
        return "starting"
    if age_of(beat) > SILENT_SECONDS:
        return "silent"
    return _OF_PHASE.get(str(beat.get("phase")), "training")


def age_of(beat: dict[str, Any]) -> float:
    """Seconds since a heartbeat; 0 for one from the future, as after a change of the clock."""
    return max(0.0, time.time() - (as_number(beat.get("time")) or 0.0))


def _without_process(run: RunFiles) -> str:
    """The state of a run that has left no process.json: of an earlier jaxvlm, imported, or copied from elsewhere."""
    beat, is_whole = run.beat, bool(run.stages) and set(run.stages) <= (run.ledger or {}).keys()
    if beat is None:
        if run.studio is not None:
            return "stopped"  # it was taken out of the queue
        return "done" if is_whole or run.folder.origin_file.is_file() else "lost"
    pid = beat.get("pid")
    if is_elsewhere(beat):
        return "done" if is_whole else "elsewhere"
    if beat.get("phase") != "done" and isinstance(pid, int) and age_of(beat) <= SILENT_SECONDS and _exists(pid):
        return _of_beat(beat)
    return "done" if is_whole else "lost"


def _exists(pid: int) -> bool:
    try:
        return is_alive(identity(pid))
    except ProcessLookupError:
        return False
