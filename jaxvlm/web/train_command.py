"""The command of a run: made of known fields, never of what a file says it was.

A run's folder may come from anywhere, and so may the command in it. To resume a run the studio takes the recipe, the
stage and the overrides out of that command, checks them, and makes a command of its own.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.web.paths import recipe_path
from jaxvlm.web.problem import Problem
from jaxvlm.web.run_state import RunFiles

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

_TAKEN = re.compile(r"--(config|stage|workdir)(?:=(.*))?", re.DOTALL)
_OVERRIDE = re.compile(r"--config\.[\w.]+=.*", re.DOTALL)
_HOW = ("--resume", "--resume-or-start", "--json", "--debug")


def train_command(recipe: Path, folder: Path, stage: str | None) -> list[str]:
    """The command that trains a recipe in a folder."""
    command = [sys.executable, "-m", "jaxvlm.train", "--config", str(recipe), "--workdir", str(folder.absolute())]
    return command + (["--stage", stage] if stage else [])


def command_of(run: RunFiles) -> list[str] | None:
    """The command on record; None if there is none."""
    for found in (run.studio, run.process):
        command = (found or {}).get("command")
        if isinstance(command, list) and command and all(isinstance(word, str) for word in command):
            return command
    return None


def resume_command(studio: Studio, run: RunFiles) -> tuple[list[str], Problem | None]:
    """The command that continues a run, and why the studio may not run it; None: it may."""
    known = command_of(run)
    if known is None:
        return [], Problem(409, "no_command", "nothing says how this run was started; resume it in a terminal")
    fields, overrides, unknown = _parse(known)
    folder = str(run.folder.path.absolute())
    recipe, stage = fields.get("config"), fields.get("stage")
    if recipe is None:
        return [], Problem(409, "no_command", "the command of this run names no recipe; resume it in a terminal")
    command = [sys.executable, "-m", "jaxvlm.train", "--config", recipe, "--workdir", folder]
    command += [*(["--stage", stage] if stage else []), *overrides, "--resume-or-start"]
    if unknown:
        return command, _by_hand("it has arguments that the studio does not know, as of several processes", known)
    where = (run.studio or run.process or {}).get("cwd")
    if where is not None and Path(where) != Path.cwd() and not Path(recipe).is_absolute():
        return command, _by_hand(f"it was started in another folder, {where}", command)
    try:
        command[4] = str(recipe_path(studio, recipe))
    except Problem as problem:
        return command, _by_hand(f"its recipe may not be run from here ({problem.message})", command)
    return command, None


def _by_hand(why: str, command: list[str]) -> Problem:
    text = shlex.join(command)
    return Problem(409, "resume_by_hand", f"{why}; resume the run in a terminal: {text}", why=why, command=text)


def _parse(command: list[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """The fields, the overrides and what is neither, of a command that contains jaxvlm.train or its file."""
    start = next((i for i, word in enumerate(command) if re.search(r"jaxvlm[./]train(\.py)?$|^train$", word)), None)
    if start is None:
        return {}, [], command
    fields: dict[str, str] = {}
    overrides: list[str] = []
    unknown: list[str] = []
    rest = iter(command[start + 1 :])
    for word in rest:
        match = _TAKEN.fullmatch(word)
        if match:
            fields[match[1]] = match[2] if match[2] is not None else next(rest, "")
        elif _OVERRIDE.fullmatch(word):
            overrides.append(word)
        elif word.startswith("--config.") and "=" not in word:
            overrides.append(f"{word}={next(rest, '')}")
        elif word not in _HOW:
            unknown.append(word)
    return fields, overrides, unknown


def command_facts(studio: Studio, run: RunFiles) -> dict[str, Any]:
    """What a page shows of the command: {command, command_text, resume_problem}."""
    command = command_of(run) or []
    problem = resume_command(studio, run)[1]
    return {
        "command": command,
        "command_text": shlex.join(command),
        "resume_problem": problem and problem.to_dict()["error"],
    }
