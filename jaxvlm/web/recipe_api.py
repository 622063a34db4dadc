"""Paths of the new-run form: goals, options, recipes, machines and launch pages."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.routing import Route

from jaxvlm.web.goals import list_goals
from jaxvlm.web.machines import (
    MACHINES,
    SettingsError,
    accelerator_type,
    dry_run,
    launch_folder,
    list_machines,
    read_settings,
    write_page,
)
from jaxvlm.web.messages import Reply, body_of, field, get, post, query
from jaxvlm.web.problem import Problem
from jaxvlm.web.recipe_info import recipe_info
from jaxvlm.web.recipes import list_recipes, open_recipe, preview, save

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio


def routes(studio: Studio) -> list[Route]:
    """The paths of this module."""

    def goals(_: Request) -> Reply:
        return Reply(list_goals())

    def options(request: Request) -> Reply:
        info = recipe_info(query(request, "base"))
        return Reply({"options": info.options, "stages": info.stages})

    def machines(_: Request) -> Reply:
        return Reply(list_machines())

    def recipes(_: Request) -> Reply:
        return Reply(list_recipes(studio))

    def recipe(request: Request) -> Reply:
        return Reply(open_recipe(studio, query(request, "path")))

    def recipe_preview(request: Request) -> Reply:
        base, values, name = _recipe_of(request)
        return Reply(preview(studio, base, values, name))

    def recipe_save(request: Request) -> Reply:
        base, values, name = _recipe_of(request)
        replace = field(body_of(request), "replace", bool, False)
        return Reply({"path": str(save(studio, base, values, name, replace=replace))})

    def launch_page(request: Request) -> Reply:
        body = body_of(request)
        settings = field(body, "settings", dict, {})
        return Reply(launch_page_of(studio, field(body, "machine", str), field(body, "name", str, ""), settings))

    return [
        get("/api/goals", goals),
        get("/api/options", options),
        get("/api/machines", machines),
        get("/api/recipes", recipes),
        get("/api/recipe", recipe),
        post("/api/recipe/preview", recipe_preview),
        post("/api/recipe/save", recipe_save),
        post("/api/launch/page", launch_page),
    ]


def _recipe_of(request: Request) -> tuple[str, dict[str, Any], str]:
    body = body_of(request)
    return field(body, "base", str), field(body, "values", dict, {}), field(body, "name", str, "")


def launch_page_of(studio: Studio, machine: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A launch page with settings filled in, and what it would run; nothing is started.

    Args:
      name: of the recipe and of the run, for settings that are not given; "": none.
      settings: name -> text. SLICE is a slice such as "2xv5e-16", which sets the machine's own two settings.

    Raises:
      Problem: 404: no such machine; 409: its page is not there; 422: settings that it does not take, all of them.
    """
    if machine not in MACHINES:
        raise Problem(404, "no_machine", f"there is no machine {machine!r}; known: {', '.join(MACHINES)}")
    page = launch_folder() / MACHINES[machine].page
    if not page.is_file():
        raise Problem(409, "no_launch_page", f"{page} is not there; the launch pages come with a checkout of jaxvlm")
    text = page.read_text()
    values = {key: value for key, value in settings.items() if key != "SLICE"}
    wrong = [key for key, value in values.items() if not isinstance(value, str)]
    if wrong:
        raise Problem(422, "bad_settings", f"settings are texts; {', '.join(wrong)} are not")
    known = {setting.name for setting in read_settings(text)}
    if "SLICE" in settings:
        values = _slice_settings(machine, str(settings["SLICE"])) | values
    if name:
        values = {"RECIPE": str(studio.recipes / f"{name}.py"), "WORKDIR": str(studio.root / name)} | values
        values = {"NAME": name.lower().replace("_", "-")[:40]} | values if "NAME" in known else values
    try:
        written = write_page(text, values)
        shown = dry_run(MACHINES[machine], values)
    except SettingsError as error:
        problems = [{"key": key, "message": message} for key, message in error.problems]
        raise Problem(422, "bad_settings", str(error), problems=problems) from error
    except subprocess.TimeoutExpired as error:
        raise Problem(500, "dry_run_hangs", f"{page} --dry-run did not end") from error
    return {"text": written, "name": f"{page.stem}-{name or 'run'}.sh", "settings": values, "dry_run": shown}


def _slice_settings(machine: str, name: str) -> dict[str, str]:
    try:
        type_name, count = accelerator_type(name)
    except (KeyError, ValueError) as error:
        raise Problem(422, "no_slice", f"no slice is called {name!r}; api/machines lists them") from error
    own = MACHINES[machine].slice_setting
    if not own:
        raise Problem(422, "no_slice", f"the machine {machine} has no slices")
    return {own: type_name, "SLICES": str(count)}
