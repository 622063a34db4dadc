"""Values and options of a recipe that comes with jaxvlm, read in a process of its own, since a recipe is a program.

`python -m jaxvlm.web.recipe_info configs.quickstart` prints them as JSON: {"values": {...}, "options": [...]}, or
{"error": ...} if the recipe cannot be read here, such as one whose package is missing.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxvlm.command import load_recipe
from jaxvlm.errors import UserError
from jaxvlm.options import list_options
from jaxvlm.web.paths import shipped_recipes
from jaxvlm.web.problem import Problem

_BASE = re.compile(r"configs\.([a-z_][a-z0-9_]*)")
_SECONDS = 300  # native_easyvqa draws its pictures first
_SHARED = ("__init__", "base")  # no recipes


@dataclasses.dataclass(frozen=True)
class RecipeInfo:
    """A recipe that others start from.

    Attributes:
      values: nested, as `ConfigDict.to_dict()`; lists in place of tuples.
      options: as `Option`, ready for JSON.
    """

    base: str
    values: dict[str, Any]
    options: list[dict[str, Any]]

    @property
    def stages(self) -> list[str]:
        """Names of the stages, in order."""
        return list(self.values["stages"])


_known: dict[str, tuple[Any, RecipeInfo]] = {}
_lock = threading.Lock()  # one process at a time


def base_file(base: str) -> Path:
    """The file of a base recipe.

    Raises:
      Problem: 404: no recipe of configs/ has this name.
    """
    match = _BASE.fullmatch(base)
    path = shipped_recipes() / f"{match[1]}.py" if match else None
    if match is None or path is None or match[1] in _SHARED or not path.is_file():
        raise Problem(404, "no_base", f"{base!r} is no recipe of configs/, such as configs.quickstart", base=base)
    return path


def recipe_info(base: str) -> RecipeInfo:
    """Reads a base recipe; once, unless a file of configs/ changes.

    Raises:
      Problem: 404: there is none; 409: it cannot be read here, with its own message.
    """
    path = base_file(base)
    state = _state_of(path.parent)
    with _lock:
        if base not in _known or _known[base][0] != state:
            _known[base] = state, _read(base)
        return _known[base][1]


def _state_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    found = ((file.name, file.stat()) for file in sorted(folder.glob("*.py")))
    return tuple((name, status.st_mtime_ns, status.st_size) for name, status in found)


def _read(base: str) -> RecipeInfo:
    command = [sys.executable, "-m", "jaxvlm.web.recipe_info", base]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired as error:
        raise Problem(409, "base_failed", f"{base} was not read within {_SECONDS} s", base=base) from error
    except (ValueError, IndexError) as error:
        tail = done.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        raise Problem(409, "base_failed", f"{base} cannot be read: {tail[0]}", base=base) from error
    if "error" in found:
        raise Problem(409, "base_failed", found["error"], base=base)
    return RecipeInfo(base, found["values"], found["options"])


def describe(base: str) -> dict[str, Any]:
    """What `recipe_info` reads, ready for JSON."""
    try:
        recipe = load_recipe(str(base_file(base)))
    except UserError as error:
        return {"error": str(error)}
    return {
        "values": recipe.to_dict(),
        "options": [dataclasses.asdict(option) for option in list_options(recipe)],
    }


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dicts by their paths, such as "stage.finetune.epochs"."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


if __name__ == "__main__":
    print(json.dumps(describe(sys.argv[1])))
