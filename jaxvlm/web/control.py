"""Starts, stops, ends and resumes runs. Every wish is a file; a process is only ever named by its identity."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.files import replace_text
from jaxvlm.process_identity import is_alive
from jaxvlm.web.launcher import launch, shown_environment
from jaxvlm.web.paths import recipe_path, run_folder
from jaxvlm.web.problem import Problem
from jaxvlm.web.run_state import (
    ENDED,
    RunFiles,
    log_file,
    read_run,
    state_of,
    stop_file,
    studio_file,
)
from jaxvlm.web.train_command import resume_command, train_command

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

_NAME = re.compile(r"(?![.\s])[^/\\\x00-\x1f\x7f]{1,100}(?<!\s)")  # of a folder
_CHECK_SECONDS = 120.0
_GONE_SECONDS = 20.0  # for the kernel to end a process


def start_run(
    studio: Studio, recipe: str, name: str, stage: str | None, *, queued: bool, devices: list[int] | None, share: bool
) -> str:
    """Starts a run in a new folder, or puts it into the queue.

    Args:
      recipe: path of a recipe.
      name: NAME or GROUP/NAME of the folder.
      stage: the only stage to run; None: all.
      queued: whether it waits for its devices.
      devices: numbers of the GPUs that it may use; None: all devices.
      share: whether it may start while another run has the same devices.

    Returns:
      the run's ID.

    Raises:
      Problem: 404 for the recipe; 422 if the recipe has a mistake, or the name is none; 409 if the folder exists, with
        a `proposal`, or the devices are taken, with `who`.
    """
    path, folder = recipe_path(studio, recipe), _new_folder(studio, name)
    check_devices(devices)
    check_recipe(path, stage)
    if not queued and not share:
        check_free(studio, devices)
    command = train_command(path, folder, stage)
    _create(studio, folder, name)
    with _taken_back(folder):
        _save(folder, _entry(command, path, devices))
        if queued:
            studio.queue.add(name)
        else:
            launch_run(studio, name)
    return name


@contextlib.contextmanager
def _taken_back(folder: Path) -> Iterator[None]:
    """Removes a new folder if it cannot be written, as on a full disk, so that its name is free for the next try."""
    try:
        yield
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _entry(command: list[str], recipe: Path, devices: list[int] | None) -> dict[str, Any]:
    environment = environment_of(devices)
    return {
        "command": command,
        "environment": shown_environment(environment),
        "cwd": str(Path.cwd()),
        "created": round(time.time(), 1),
        "recipe": str(recipe),
        "recipe_sha256": sha256_of(recipe),
        "devices": devices,
        "launcher": None,
    }


def launch_run(studio: Studio, name: str) -> None:
    """Starts the command that a run's studio.json has.

    Raises:
      Problem: 500: it cannot be started.
      OSError: its folder cannot be written; nothing runs then.
    """
    folder = run_folder(studio, name)
    run = read_run(folder)
    entry = run.studio or {}
    environment = environment_of(entry.get("devices"))
    for left in (stop_file(folder), run.folder.process_file):
        left.unlink(missing_ok=True)
    cwd, log, end = Path(entry["cwd"]), log_file(folder), run.folder.exit_file
    entry["launcher"] = launch(entry["command"], cwd, log, end, environment)
    entry["launched"] = round(time.time(), 1)
    try:
        _save(folder, entry)
    except OSError:  # a process that nobody could find again
        _end(entry["launcher"])
        raise


def _end(launcher: Mapping[str, Any]) -> None:
    """Ends a launcher, which would write into the folder, and then what it has started."""
    child = launcher["child"]
    with contextlib.suppress(ProcessLookupError):
        if is_alive(launcher):
            os.kill(launcher["pid"], signal.SIGKILL)
        if is_alive(child):
            os.killpg(launcher["pgid"], signal.SIGKILL)
    _wait_until(lambda: not is_alive(launcher) and not is_alive(child))


def _save(folder: Path, entry: Mapping[str, Any]) -> None:
    replace_text(studio_file(folder), json.dumps(entry, indent=1, ensure_ascii=False) + "\n")


def _new_folder(studio: Studio, name: str) -> Path:
    parts = name.split("/")
    if len(parts) > 2 or not all(_NAME.fullmatch(part) for part in parts):
        raise Problem(
            422,
            "bad_name",
            f"{name!r} is no name of a run: NAME or GROUP/NAME, of up to 100 characters each, not beginning with a dot",
            field="name",
        )
    folder = studio.root.joinpath(*parts)
    if len(parts) == 2 and not folder.parent.resolve().is_relative_to(studio.root.resolve()):
        raise Problem(422, "bad_name", f"{parts[0]!r} is outside of {studio.root}", field="name")
    return folder


def _create(studio: Studio, folder: Path, name: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError as error:
        proposal = free_name(studio, name)
        raise Problem(
            409, "run_exists", f"{folder} exists already; take another name, such as {proposal}", proposal=proposal
        ) from error


def free_name(studio: Studio, name: str) -> str:
    """The name, or NAME-2, NAME-3, ... whichever no folder has."""
    stem, number = re.fullmatch(r"(.*?)(?:-(\d{1,6}))?", name, re.DOTALL).groups()  # type: ignore[union-attr]
    found, count = name, int(number or 1)
    while os.path.lexists(studio.root / found):
        count += 1
        found = f"{stem}-{count}"
    return found


def sha256_of(path: Path) -> str | None:
    """The hash of a file; None if it is missing."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def check_recipe(path: Path, stage: str | None) -> None:
    """Reads a recipe as `train` does, in a process of its own, as it is a program.

    Raises:
      Problem: 422: it has a mistake.
    """
    command = [sys.executable, "-m", "jaxvlm.web.recipe_check", str(path), *([stage] if stage else [])]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_CHECK_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Problem(422, "bad_recipe", f"{path} was not read within {_CHECK_SECONDS:.0f} s") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        raise Problem(422, "bad_recipe", last.removeprefix("error: "))


def gpus() -> list[int]:
    """Numbers of the NVIDIA devices of this machine."""
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return sorted(int(match[1]) for match in found if match)


def check_devices(devices: list[int] | None) -> None:
    """Checks a choice of devices.

    Raises:
      Problem: 422: this machine does not have them; only GPUs can be chosen.
    """
    if devices is None:
        return
    known = gpus()
    if not devices or not all(type(device) is int and device in known for device in devices):
        raise Problem(
            422,
            "bad_devices",
            f"devices {devices} are not all here; the GPUs of this machine: {known or 'none'}; leave them out for all",
            field="devices",
            known=known,
        )


def environment_of(devices: list[int] | None) -> dict[str, str]:
    """The variables that give a run its devices."""
    return {} if devices is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}


def check_free(studio: Studio, devices: list[int] | None) -> None:
    """Checks that nobody has these devices.

    Raises:
      Problem: 409, with `who`.
    """
    who = studio.queue.holders(devices)
    if who:
        names = ", ".join(entry["name"] for entry in who)
        raise Problem(409, "devices_busy", f"{names} has the devices; put the run into the queue, or share", who=who)


def stop_run(studio: Studio, name: str) -> dict[str, Any]:
    """Asks a run to finish its step, save and end: SIGTERM to its process.

    Returns:
      {pid}: the process that has the signal.

    Raises:
      Problem: 409: no process of the run is alive on this machine.
    """
    folder = run_folder(studio, name)
    process = _alive(read_run(folder), name)
    with contextlib.suppress(OSError):  # on a full disk, too, a run has to end
        replace_text(stop_file(folder), json.dumps({"time": round(time.time(), 1), "pid": process["pid"]}) + "\n")
    with contextlib.suppress(ProcessLookupError):
        os.kill(process["pid"], signal.SIGTERM)
    return {"pid": process["pid"]}


def kill_run(studio: Studio, name: str, lost: Callable[[], dict[str, Any]], *, confirmed: bool) -> dict[str, Any]:
    """Ends a run at once: SIGKILL to the group that the launcher started, or to the process that is on record.

    Args:
      lost: tells what is lost; for the question, and in the reply.
      confirmed: whether somebody has read it.

    Returns:
      {gone, lost}: whether all its processes are gone, and what is lost.

    Raises:
      Problem: 409: not confirmed; or no process of the run is alive on this machine.
    """
    run = read_run(run_folder(studio, name))
    _alive(run, name)
    facts = lost()
    if not confirmed:
        raise Problem(409, "not_confirmed", "what was trained since the last checkpoint is lost; confirm it", **facts)
    group = _group(run)
    if group is not None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    if run.process is not None and is_alive(run.process):  # started in a terminal, or by a launch page
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.process["pid"], signal.SIGKILL)
    return {"gone": _wait_until(lambda: run.running() is None), "lost": facts}


def _alive(run: RunFiles, name: str) -> dict[str, Any]:
    process = run.running()
    if process is None:
        raise Problem(409, "not_running", f"no process of {name} runs on this machine", run=name)
    if process["pid"] <= 1 or process["pid"] == os.getpid():
        raise Problem(409, "not_running", f"the process on record for {name} is not that of a run", run=name)
    return process


def _group(run: RunFiles) -> int | None:
    """The process group of the run's command, if its first process is still the one that was started."""
    group, child = (run.launcher or {}).get("pgid"), run.child
    return group if child and is_alive(child) and group == child["pid"] and group > 1 else None


def _wait_until(is_gone: Callable[[], bool]) -> bool:
    """Whether processes that were killed are gone before the kernel has had more than enough time."""
    end = time.monotonic() + _GONE_SECONDS
    while not is_gone():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def resume_run(studio: Studio, name: str, *, share: bool = False) -> str:
    """Continues a run that has ended, with the command that started it.

    Raises:
      Problem: 409: it has not ended, or cannot be resumed from here, with the command for a terminal; or its devices
        are taken.
    """
    folder = run_folder(studio, name)
    run = read_run(folder)
    if name in studio.queue.places() or state_of(run) not in ENDED or run.anything_runs():
        raise Problem(409, "not_ended", f"{name} has not ended", run=name)
    command, problem = resume_command(studio, run)
    if problem is not None:
        raise problem
    entry = dict(run.studio or {"created": round(time.time(), 1), "devices": None, "environment": {}})
    check_devices(entry.get("devices"))
    if not share:
        check_free(studio, entry.get("devices"))
    entry |= {"command": command, "cwd": str(Path.cwd()), "launcher": None}
    _save(folder, entry)
    launch_run(studio, name)
    return name
