"""Recipes of the studio: a base of configs/ and literal values, checked, written, listed and opened."""

from __future__ import annotations

import copy
import dataclasses
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxvlm.config import Config, check_values
from jaxvlm.errors import UserError, did_you_mean
from jaxvlm.families.registry import media_layout, resolve
from jaxvlm.files import replace_text
from jaxvlm.recipe_text import RecipeText, read_recipe_text, write_recipe_text
from jaxvlm.stage_checks import check_heldout, check_trains
from jaxvlm.web.paths import recipe_path, shipped_recipes
from jaxvlm.web.problem import Problem
from jaxvlm.web.recipe_info import RecipeInfo, recipe_info

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

_NAME = re.compile(r"[^\W_][\w-]{0,79}")
_KEYS = re.compile(r"config\.([A-Za-z_][\w.]*\w)")
_NEXT = re.compile(r"(unknown key |missing key )?(config\.|parts\.)")  # how a problem begins that follows another
_PYTHON = {"bool": bool, "int": int, "float": float, "str": str}


@dataclasses.dataclass(frozen=True)
class Problems:
    """What is wrong with values: (key, message); a key of None concerns the whole recipe."""

    found: list[tuple[str | None, str]]

    def to_json(self) -> list[dict[str, Any]]:
        """Ready for JSON."""
        return [{"key": key, "message": message} for key, message in self.found]


def list_recipes(studio: Studio) -> dict[str, Any]:
    """The user's recipes, and those that come with jaxvlm; none is run."""
    found = []
    for folder, is_own in ((studio.recipes, True), (shipped_recipes(), False)):
        for path in sorted(folder.rglob("*.py")) if folder.is_dir() else []:
            is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if not is_hidden and path.stem != "base" and _has_recipe(path):
                found.append(_entry(path, is_own=is_own))
    return {"recipes": found, "looked_in": str(studio.recipes.resolve())}


def _has_recipe(path: Path) -> bool:
    """Whether a file defines `get_config`, by its text; others hold what recipes share."""
    try:
        return (
            re.search(r"^def get_config\(", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
            is not None
        )
    except OSError:
        return False


def _entry(path: Path, *, is_own: bool) -> dict[str, Any]:
    try:
        text = read_recipe_text(path)
        problem = None
    except (UserError, OSError) as error:
        text, problem = None, str(error)
    return {
        "path": str(path.resolve()),
        "name": path.stem,
        "title": text.title if text else _first_line(path),
        "base": text.base if text else None,
        "editable": text is not None and is_own,
        "own": is_own,
        "problem": problem,
    }


def _first_line(path: Path) -> str:
    """The first line of a file's docstring, from its text."""
    try:
        match = re.match(r'\s*(?:"""|\'\'\')(.*)', path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return ""
    return match[1].strip().strip("\"'") if match else ""


def open_recipe(studio: Studio, text: str) -> dict[str, Any]:
    """A recipe's text, and base and values if the studio wrote it.

    Raises:
      Problem: 404: no such recipe; 409: it is not Python.
    """
    path = recipe_path(studio, text)
    try:
        content, read = path.read_text(encoding="utf-8", errors="replace"), read_recipe_text(path)
    except UserError as error:
        raise Problem(409, "recipe_broken", str(error), path=str(path)) from error
    own = not path.is_relative_to(shipped_recipes())
    return {
        "path": str(path),
        "name": path.stem,
        "title": read.title if read else _first_line(path),
        "text": content,
        "base": read.base if read else None,
        "values": dict(read.values) if read else {},
        "editable": read is not None and own,
    }


def preview(studio: Studio, base: str, values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The recipe of these values, the command that trains it, what differs from its base, and what is wrong.

    Raises:
      Problem: 404 or 409 of the base; 422: a value is no literal.
    """
    info = recipe_info(base)
    given = as_literals(values, info)
    known = {option["key"]: option for option in info.options}
    name = name or "my-recipe"
    path = studio.recipes / f"{name}.py"
    return {
        "text": recipe_text(base, given, name, path),
        "command": shlex.join(train_command(as_typed(path), as_typed(studio.root / name))),
        "differences": [
            {"key": key, "default": known.get(key, {}).get("value"), "value": value}
            for key, value in given.items()
            if key not in known or _plain(value) != known[key]["value"]
        ],
        "problems": find_problems(info, given, name).to_json(),
    }


def as_typed(path: Path) -> Path:
    """A path as one would type it: relative to the working directory of the studio, if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def train_command(recipe: Path, run: Path) -> list[str]:
    """The command that trains a recipe into a new run."""
    return ["python", "-m", "jaxvlm.train", "--config", str(recipe), "--workdir", str(run)]


def recipe_text(base: str, values: Mapping[str, Any], name: str, path: Path) -> str:
    """The text of a recipe.

    Raises:
      Problem: 422: a value is no literal, or a key is no path.
    """
    try:
        return write_recipe_text(
            RecipeText(base, values, f"{name}, made of {base} in the studio."), file=str(as_typed(path))
        )
    except UserError as error:
        raise Problem(422, "bad_values", str(error)) from error


def as_literals(values: Mapping[str, Any], info: RecipeInfo) -> dict[str, Any]:
    """Values as a recipe has them: tuples in place of JSON's lists, and floats where JSON writes 2 for 2.0."""
    floats = {option["key"] for option in info.options if option["type"] == "float"}
    return {
        key: float(value) if key in floats and type(value) is int else _tuples(value) for key, value in values.items()
    }


def _tuples(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_tuples, value))
    return {key: _tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    """The reverse, to compare with what came from JSON."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def find_problems(info: RecipeInfo, values: Mapping[str, Any], name: str) -> Problems:
    """Every mistake that shows without reading data or weights, at its key where that is known."""
    found: list[tuple[str | None, str]] = []
    if not _NAME.fullmatch(name):
        found.append((None, f"the name {name!r} is no file name; use letters, digits, dashes and underscores"))
    known = {option["key"]: option for option in info.options}
    for key, value in values.items():
        if key not in known:
            found.append((key, f"{key} is no option of {info.base}{did_you_mean(key, known)}"))
        elif message := _type_problem(known[key], value):
            found.append((key, message))
    if not found:
        found += _recipe_problems(merged(info, values), set(values))
    return Problems(found)


def _type_problem(option: Mapping[str, Any], value: Any) -> str:
    """Why a value is none of its option; "" if it is one."""
    key, kind = option["key"], _PYTHON.get(option["type"])
    if value is None:
        return "" if option["can_be_none"] else f"{key} = None, expected {option['type']}"
    if kind is float and type(value) is int:
        return ""
    if kind is not None and type(value) is not kind:
        return f"{key} = {value!r}, expected {option['type']}"
    choices = option["choices"]
    if choices and not option["is_open"] and value not in choices:
        return f"{key} = {value!r}, expected one of {', '.join(map(repr, choices))}"
    return ""


def merged(info: RecipeInfo, values: Mapping[str, Any]) -> dict[str, Any]:
    """The nested values of the base with others set."""
    result = copy.deepcopy(info.values)
    for key, value in values.items():
        *groups, last = key.split(".")
        group = result
        for part in groups:
            group = group[part]
        group[last] = value
    return result


def _recipe_problems(values: dict[str, Any], given: set[str]) -> list[tuple[str | None, str]]:
    try:
        config = resolve(values)
    except UserError as error:
        return _by_key(str(error), "", given)
    found = []
    checks: list[tuple[str, Callable[[], object]]] = [("", lambda: check_values(config))]
    for stage in config.stages:
        checks += [(f"stage.{stage}", check) for check in _stage_checks(config, stage)]
    for where, check in checks:
        try:
            check()
        except UserError as error:
            found += _by_key(str(error), where, given)
    return found


def _stage_checks(config: Config, name: str) -> list[Callable[[], object]]:
    stage = config.stage[name]

    def check_source() -> None:
        if not stage.data.source and not stage.data.mix:
            raise UserError(f"config.stage.{name}.data.source is empty; name the data to train on")

    return [
        lambda: check_trains(stage, name),
        lambda: check_heldout(stage, stage.data.heldout),
        check_source,
        lambda: media_layout(config.model, stage.data),
    ]


def _by_key(message: str, where: str, given: set[str]) -> list[tuple[str | None, str]]:
    """The problems of a message, each at the key that it names first, or at that of `where` that it ends like."""
    found: list[tuple[str | None, str]] = []
    for part in message.removeprefix("the config has ").split("; "):
        if found and not _NEXT.match(part):  # the remedy of the problem before it
            key, before = found.pop()
            found.append((key, f"{before}; {part}"))
            continue
        match = _KEYS.search(part)
        key = match[1] if match else None
        if key is None and where:
            words = re.findall(r"[a-z_]+(?:\.[a-z_]+)*", part)
            key = next((k for word in words for k in sorted(given) if k.startswith(where) and k.endswith(word)), None)
        found.append((key, part))
    return found


def save(studio: Studio, base: str, values: Mapping[str, Any], name: str, *, replace: bool = False) -> Path:
    """Writes a recipe into the user's folder.

    Args:
      replace: an earlier recipe of the studio of this name; never one with logic of its own.

    Raises:
      Problem: 422: something is wrong with name or values; 409: a recipe of this name is there, with a free name.
    """
    info = recipe_info(base)
    given = as_literals(values, info)
    problems = find_problems(info, given, name)
    if problems.found:
        message = "; ".join(message for _, message in problems.found)
        raise Problem(422, "bad_values", message, problems=problems.to_json())
    path = studio.recipes / f"{name}.py"
    if path.exists() and not (replace and _is_written(path)):
        free = free_name(studio.recipes, name)
        raise Problem(
            409, "recipe_exists", f"{path} is there already; choose another name, such as {free}", name=name, free=free
        )
    studio.recipes.mkdir(parents=True, exist_ok=True)
    replace_text(path, recipe_text(base, given, name, path))
    return path.resolve()


def _is_written(path: Path) -> bool:
    try:
        return read_recipe_text(path) is not None
    except (UserError, OSError):
        return False


def free_name(folder: Path, name: str) -> str:
    """NAME, or the first of NAME-2, NAME-3, ... of which the folder has no recipe."""
    number = 1
    while (folder / f"{name if number == 1 else f'{name}-{number}'}.py").exists():
        number += 1
    return name if number == 1 else f"{name}-{number}"
