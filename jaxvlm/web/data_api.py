"""Paths of data and plans: the folder browser, the check with its samples, preparation, plans of memory and time."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from jaxvlm.files import replace_text
from jaxvlm.planning.slices import HERE, known_slices
from jaxvlm.web.folders import list_folder, roots_of
from jaxvlm.web.messages import Reply, body_of, field, get, post, query
from jaxvlm.web.paths import data_path
from jaxvlm.web.problem import Problem
from jaxvlm.web.recipe_info import recipe_info
from jaxvlm.web.recipes import as_literals, find_problems, recipe_text
from jaxvlm.web.texts import read_json, read_tail

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

ROWS = 6  # that are shown of data
_SHOWN_PROBLEMS = 200
_PICTURE = re.compile(r"\d+-\d+\.png")
_LOG_BYTES = 2**20
# The page of rows is one file without scripts; in a frame of ours it may show its own styles and pictures.
_PAGE_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox"


def routes(studio: Studio) -> list[Route]:
    """The paths of this module."""

    def browse(request: Request) -> Reply:
        text = query(request, "path", "")
        return Reply(list_folder(studio, data_path(studio, text)) if text else roots_of(studio))

    def check(request: Request) -> Reply:
        body = body_of(request)
        stage = _stage(body)
        command = ["check", f"--rows={ROWS}", *([f"--stage={stage}"] if stage else [])]
        return Reply({"task": start_with_recipe(studio, "data_check", body, _inspect(*command), stage=stage)})

    def report(request: Request) -> Reply:
        return Reply(read_report(studio, query(request, "task")))

    def page(request: Request) -> Response:
        path = studio.tasks.folder(query(request, "task")) / "rows.html"
        if not path.is_file():
            raise Problem(404, "no_page", "this check has written no page of rows")
        return FileResponse(path, media_type="text/html", headers={"content-security-policy": _PAGE_POLICY})

    def picture(request: Request) -> Response:
        folder, name = studio.tasks.folder(query(request, "task")), query(request, "name")
        path = folder / "pictures" / name
        if not _PICTURE.fullmatch(name) or not path.is_file():
            raise Problem(404, "no_image", f"this check has no picture {name!r}")
        return FileResponse(path, media_type="image/png")

    def lengths(request: Request) -> Response:
        path = studio.tasks.folder(query(request, "task")) / "lengths.png"
        if not path.is_file():
            raise Problem(404, "no_image", "this check has no picture of lengths")
        return FileResponse(path, media_type="image/png")

    def prepare(request: Request) -> Reply:
        return Reply({"task": _start_prepare(studio, body_of(request))})

    def plan(request: Request) -> Reply:
        return Reply({"task": _start_plan(studio, body_of(request))})

    def plan_result(request: Request) -> Reply:
        return Reply(read_plan(studio, query(request, "task")))

    return [
        get("/api/browse", browse),
        post("/api/data/check", check),
        get("/api/data/report", report),
        get("/api/data/page", page),
        get("/api/data/picture", picture),
        get("/api/data/lengths", lengths),
        post("/api/data/prepare", prepare),
        post("/api/plan", plan),
        get("/api/plan/result", plan_result),
    ]


def _stage(body: Mapping[str, Any]) -> str:
    return field(dict(body), "stage", str, "")


def start_with_recipe(
    studio: Studio, kind: str, body: dict[str, Any], command: Callable[[Path], list[str]], **about: Any
) -> str:
    """Starts a task whose folder has the recipe of a form as recipe.py; returns its ID.

    Args:
      command: makes the command of the folder.

    Raises:
      Problem: 422: something is wrong with the values.
    """
    base = field(body, "base", str)
    info = recipe_info(base)
    values = as_literals(field(body, "values", dict, {}), info)
    stage = about.get("stage")
    if stage and stage not in info.stages:
        raise Problem(
            422, "bad_field", f"{base} has no stage {stage!r}; it has {', '.join(info.stages)}", field="stage"
        )
    if problems := find_problems(info, values, "recipe").to_json():
        message = "; ".join(problem["message"] for problem in problems)
        raise Problem(422, "bad_values", message, problems=problems)

    def with_recipe(folder: Path) -> list[str]:
        path = folder / "recipe.py"
        replace_text(path, recipe_text(base, values, kind, path))
        return command(folder)

    return studio.tasks.start(kind, with_recipe, {"base": base, **about})


def _inspect(verb: str, *flags: str) -> Callable[[Path], list[str]]:
    """The command of `inspect_data`, which writes into the task's folder."""

    def command(folder: Path) -> list[str]:
        program = [sys.executable, "-m", "jaxvlm.inspect_data", verb]
        return [*program, "--config", str(folder / "recipe.py"), "--out", str(folder), *flags, "--json"]

    return command


def _start_prepare(studio: Studio, body: dict[str, Any]) -> str:
    """Starts the preparation of a source into a new folder below a folder of --data."""
    to, jpeg = Path(field(body, "to", str)), field(body, "jpeg", int, 0)
    parent = data_path(studio, str(to.parent))
    out = parent / to.name
    if not 0 <= jpeg <= 95:
        raise Problem(422, "bad_field", f"jpeg = {jpeg}, expected a quality from 1 to 95, or 0 for PNG", field="jpeg")
    if out.exists() or not to.name or to.name.startswith("."):
        raise Problem(409, "folder_exists", f"{out} is there already, or no name; choose another", path=str(out))
    stage = _stage(body)
    flags = [f"--jpeg={jpeg}", *([f"--stage={stage}"] if stage else [])]

    def command(folder: Path) -> list[str]:
        program = [sys.executable, "-m", "jaxvlm.inspect_data", "prepare"]
        return [*program, "--config", str(folder / "recipe.py"), "--out", str(out), *flags, "--json"]

    return start_with_recipe(studio, "prepare", body, command, stage=stage, to=str(out))


def read_report(studio: Studio, task: str) -> dict[str, Any]:
    """What a check of data has found; counts of null as long as it has not ended.

    Raises:
      Problem: 404: no such task; 409: it failed, with its own message.
    """
    folder, state = studio.tasks.folder(task), studio.tasks.get(task)
    counts = read_json(folder / "report.json")
    if counts is None and state["state"] not in ("running", "done"):
        raise Problem(409, "task_failed", _error_of(folder), task=task)
    return {
        "samples": _read_lines(folder / "rows.json"),
        "counts": counts,
        "problems": _problems(folder / "problems.jsonl"),
        "page": f"api/data/page?task={task}" if (folder / "rows.html").is_file() else None,
        "lengths": f"api/data/lengths?task={task}" if (folder / "lengths.png").is_file() else None,
        "picture": f"api/data/picture?task={task}&name=",
        "state": state["state"],
    }


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []


def _problems(path: Path) -> list[dict[str, Any]]:
    """The first problems: {line, origin, reason, message}; `line` counts records from 1."""
    found: list[dict[str, Any]] = []
    try:
        with path.open(encoding="utf-8") as file:
            for text in file:
                entry = json.loads(text)
                found.append(
                    {
                        "line": entry["record"] + 1,
                        "origin": entry["origin"],
                        "reason": entry["reason"],
                        "message": entry["problem"],
                    }
                )
                if len(found) == _SHOWN_PROBLEMS:
                    break
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return found


def _error_of(folder: Path) -> str:
    """The one line with which a command of ours says what is wrong, else the last of its log."""
    lines = [line for line in read_tail(folder / "log.txt", 2**14).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "no output")


def _start_plan(studio: Studio, body: dict[str, Any]) -> str:
    machine, stage, price = field(body, "machine", str), _stage(body), field(body, "price", float, 0.0)
    records = field(body, "records", int, 0)
    if machine != HERE and re.sub(r"^[1-9]\d*x", "", machine) not in known_slices():
        known = f"{HERE}, {', '.join(known_slices())}"
        raise Problem(422, "no_slice", f"no plan can be made for {machine!r}; known: {known}", machine=machine)

    def command(folder: Path) -> list[str]:
        program = [sys.executable, "-m", "jaxvlm.plan", "--config", str(folder / "recipe.py"), "--json"]
        flags = [f"--topology={machine}", *([f"--stage={stage}"] if stage else [])]
        flags += [f"--price-per-chip-hour={price}"] if price > 0 else []
        return [*program, *flags, *([f"--records={records}"] if records > 0 else [])]

    return start_with_recipe(studio, "plan", body, command, stage=stage, machine=machine)


def read_plan(studio: Studio, task: str) -> dict[str, Any]:
    """What a plan found.

    Raises:
      Problem: 404: no such task; 409: it runs still, or it failed, with its own message.
    """
    folder, state = studio.tasks.folder(task), studio.tasks.get(task)
    if state["state"] == "running":
        raise Problem(409, "task_running", "the plan is not ready", task=task)
    lines = read_tail(folder / "log.txt", _LOG_BYTES).splitlines()
    found = _last_json(lines)
    if found is None or "fits" not in found:
        raise Problem(409, "task_failed", _error_of(folder), task=task)
    run, help = found.get("run") or {}, found.get("what_would_help") or []
    return {
        "fits": found["fits"],
        "machine": found["slice"],
        "memory": found["memory_bytes"],
        "step_seconds": (found.get("estimate") or {}).get("step_seconds"),
        "hours": run.get("hours"),
        "steps": run.get("steps"),
        "cost": run.get("cost"),
        "first_fix": help[0] if help else None,
        "fixes": help,
        "report_text": "\n".join(line for line in lines[:-1] if "|" not in line or "%|" not in line),
    }


def _last_json(lines: list[str]) -> dict[str, Any] | None:
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        return None
    return found if isinstance(found, dict) else None
