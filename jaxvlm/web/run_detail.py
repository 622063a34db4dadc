"""Everything that the page of one run shows besides its curves and its log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.training.checkpoint_files import damage, position_of, saved_steps
from jaxvlm.web.control import sha256_of
from jaxvlm.web.pictures import list_pictures
from jaxvlm.web.run_list import CACHE, summary
from jaxvlm.web.run_state import ACTIVE, ENDED, RunFiles, log_file
from jaxvlm.web.texts import as_number, read_tail
from jaxvlm.web.train_command import command_facts

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

TAIL_LINES = 40
_TAIL_BYTES = 2**15
_FILES = {
    "config.json": "recipe",
    "metrics.jsonl": "metrics",
    "ledger.json": "ledger",
    "evaluation.json": "evaluation",
    "studio.log": "log",
    "loss.png": "picture",
    "samples.png": "picture",
}
# The state's advice, a code that pages translate; the log may have a better one.
_ADVICE = {
    "mistake": "fix_recipe",
    "crashed": "see_log",
    "killed": "killed_by_system",
    "lost": "lost_restart",
    "silent": "silent_wait",
    "paused": "resume",
    "stopped": "resume",
    "elsewhere": "watch_only",
}
_SIGNS = (
    (re.compile(r"RESOURCE_EXHAUSTED|out of memory|has too little memory", re.IGNORECASE), "out_of_memory"),
    (re.compile(r"No space left on device|Disk quota exceeded|free some space", re.IGNORECASE), "disk_full"),
)


def detail(studio: Studio, name: str) -> dict[str, Any]:
    """What `api/run` replies.

    Args:
      name: the run's path relative to the root; the folder is known to be a run's.
    """
    line = summary(studio, name)
    path = studio.root / name
    run, seen = CACHE.read(path)
    checkpoints = list_checkpoints(run)
    beat = run.own_beat or {}
    facts = command_facts(studio, run)
    problem = facts.pop("resume_problem")
    active = line["state"] in ACTIVE
    return {
        **line,
        "phase": beat.get("phase") if active else None,
        "phase_seconds": as_number(beat.get("phase_seconds")) if active else None,
        "stages": _stages(run, line, seen, checkpoints),
        "checkpoints": [{key: found[key] for key in ("stage", "step", "bytes", "time")} for found in checkpoints],
        "ledger": run.ledger or {},
        "process": run.process,
        "exit": run.ended,
        **facts,
        **_recipe(run),
        "launched_by_studio": run.launcher is not None,
        "stopping": run.stopping if active else None,
        "advice": _ADVICE.get(line["state"]),
        "error": _error(run, line["state"]),
        "can": _can(studio, run, line["state"], problem),
        "resume_problem": problem if line["state"] in ENDED else None,
        "lost_on_kill": lost_on_kill(line, seen, checkpoints) if active else None,
        "files": _files(path),
        "suites": _suites(path),
    }


def lost_now(studio: Studio, name: str) -> dict[str, Any]:
    """What a kill loses now; see `lost_on_kill`."""
    run, seen = CACHE.read(studio.root / name)
    return lost_on_kill(summary(studio, name), seen, list_checkpoints(run))


def lost_on_kill(line: dict[str, Any], seen: dict[str, Any], checkpoints: list[dict[str, Any]]) -> dict[str, Any]:
    """Steps since the stage's newest checkpoint, and about how long they took: {steps, checkpoint_step, seconds}."""
    step = line["step"] or 0
    saved = max((found["step"] for found in checkpoints if found["stage"] == line["stage"]), default=0)
    lost = max(0, step - saved)
    rate = seen["step_seconds"]
    return {"steps": lost, "checkpoint_step": saved, "seconds": None if rate is None else round(lost * rate, 1)}


def list_checkpoints(run: RunFiles) -> list[dict[str, Any]]:
    """Checkpoints that have all their files, in the order of the stages: [{stage, step, bytes, time, steps}]."""
    root = run.folder.path / "checkpoints"
    there = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    stages = [name for name in run.stages if name in there]
    stages += sorted(name for name in there if name not in stages)
    return [found for stage in stages for found in _of_stage(root / stage, stage)]


def _of_stage(folder: Path, stage: str) -> list[dict[str, Any]]:
    return [found for step in saved_steps(folder) if (found := _checkpoint(folder / str(step), stage, step))]


def _checkpoint(path: Path, stage: str, step: int) -> dict[str, Any] | None:
    """A checkpoint; None if it is not whole, or goes away meanwhile."""
    try:
        if damage(path):
            return None
        time, steps = path.stat().st_mtime, position_of(path)["steps"]
        total = sum(found.stat().st_size for found in path.rglob("*") if found.is_file())
    except (OSError, ValueError):
        return None
    return {"stage": stage, "step": step, "bytes": total, "time": round(time, 1), "steps": steps}


def _stages(run: RunFiles, line: dict[str, Any], seen: dict[str, Any], checkpoints: list[dict]) -> list[dict[str, Any]]:
    """Each stage of the recipe: {name, step, steps, over}."""
    found = []
    for name in run.stages:
        saved = [checkpoint for checkpoint in checkpoints if checkpoint["stage"] == name]
        step = max((checkpoint["step"] for checkpoint in saved), default=0)
        steps = saved[-1]["steps"] if saved else None
        if name == line["stage"]:
            step, steps = max(step, line["step"] or 0), line["steps"] or steps
        if name == seen["stage"]:
            step = max(step, seen["step"] or 0)
        found.append({"name": name, "step": step, "steps": steps, "over": name in (run.ledger or {})})
    return found


def _recipe(run: RunFiles) -> dict[str, Any]:
    """{recipe, recipe_changed}: its path, and whether the file is another one than at the start."""
    studio = run.studio or {}
    path, known = studio.get("recipe"), studio.get("recipe_sha256")
    if not isinstance(path, str):
        return {"recipe": None, "recipe_changed": None}
    return {"recipe": path, "recipe_changed": sha256_of(Path(path)) != known if known else None}


def _error(run: RunFiles, state: str) -> dict[str, Any] | None:
    """{line, tail, advice} of a run that needs somebody's attention."""
    if state not in ("mistake", "crashed", "killed", "lost", "silent"):
        return None
    tail = [line.rstrip() for line in read_tail(log_file(run.folder.path), _TAIL_BYTES).splitlines()][-TAIL_LINES:]
    marked = [line for line in tail if line.startswith("error: ")]
    last = next((line for line in reversed(tail) if line), "")
    own = (run.ended or {}).get("message")
    line = own if isinstance(own, str) and own else marked[-1].removeprefix("error: ") if marked else last
    advice = _ADVICE[state]
    if state != "silent":
        advice = next((code for sign, code in _SIGNS if any(map(sign.search, [line, *tail]))), advice)
    return {"line": line, "tail": tail, "advice": advice}


def _can(studio: Studio, run: RunFiles, state: str, problem: dict | None) -> dict[str, bool]:
    """Which buttons work."""
    may = not studio.read_only
    alive = may and run.running() is not None
    resume = may and state in ENDED and problem is None and not run.anything_runs()
    return {"stop": alive, "kill": alive, "resume": resume, "delete": False}


def _files(path: Path) -> list[dict[str, Any]]:
    """{name, bytes, what} of the files that somebody may want to see."""
    names = [name for name in _FILES if (path / name).is_file()]
    names += [name for name in list_pictures(path) if name not in names]
    return [
        {"name": name, "bytes": (path / name).stat().st_size, "what": _FILES.get(name, "picture")} for name in names
    ]


def _suites(path: Path) -> list[str]:
    """Names of the benchmarks that the run has results of."""
    folder = path / "evaluations"
    return sorted(found.stem for found in folder.glob("*.json")) if folder.is_dir() else []
