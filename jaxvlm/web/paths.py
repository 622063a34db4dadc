"""Which files a request may name: runs below the root, data and recipes below folders of the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import configs
from jaxvlm.web.problem import Problem

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

MARKS = ("config.json", "process.json", "studio.json")  # a folder with one of these is a run's
HIDDEN = ".studio"
_LONGEST = 1000  # characters of a path in a request


def shipped_recipes() -> Path:
    """The folder of the recipes that come with jaxvlm."""
    return Path(configs.__path__[0]).resolve()


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or the beginning of one."""
    return any((folder / mark).is_file() for mark in MARKS)


def run_folder(studio: Studio, run: str) -> Path:
    """The folder of a run.

    Args:
      run: its path relative to the root, NAME or GROUP/NAME.

    Raises:
      Problem: 404: no run of this name, or one that is outside of the root after its links are followed.
    """
    missing = Problem(404, "no_run", f"there is no run {run!r} in {studio.root}", run=run)
    parts = run.split("/")
    if not _is_plain(run) or len(parts) > 2 or any(part in ("", ".", "..") or part.startswith(".") for part in parts):
        raise missing
    folder = studio.root.joinpath(*parts)
    try:
        inside = folder.resolve().is_relative_to(studio.root.resolve())
        if not inside or not is_run(folder):
            raise missing
    except (OSError, RuntimeError) as error:  # a name that is too long; a loop of links
        raise missing from error
    return folder


def data_path(studio: Studio, text: str) -> Path:
    """A file or folder of data, absolute and without links.

    Args:
      text: absolute, or relative to the working directory of the studio.

    Raises:
      Problem: 404: it does not exist, or is neither below a --data folder nor below the root or the recipes.
    """
    return _below(text, [*studio.data_roots, studio.root, studio.recipes], "no_data", "--data")


def recipe_path(studio: Studio, text: str) -> Path:
    """A recipe's file; a recipe is a program, so none from elsewhere is ever run.

    Raises:
      Problem: 404: it does not exist, or is neither below --recipes nor one that comes with jaxvlm.
    """
    found = _below(text, [studio.recipes, shipped_recipes()], "no_recipe", "--recipes")
    if found.suffix != ".py" or not found.is_file():
        raise Problem(404, "no_recipe", f"{text!r} is no recipe: a file that ends in .py", path=text)
    return found


def _below(text: str, folders: Iterable[Path], code: str, flag: str) -> Path:
    missing = Problem(404, code, f"{text!r} is not below a folder of {flag}, or does not exist", path=text)
    if not text or not _is_plain(text):
        raise missing
    try:
        found = Path(text).resolve()
        roots = [folder.resolve() for folder in folders]
        if not found.exists() or not any(found.is_relative_to(root) for root in roots):
            raise missing
    except (OSError, RuntimeError) as error:
        raise missing from error
    root = next(root for root in roots if found.is_relative_to(root))
    if HIDDEN in found.relative_to(root).parts:  # the token, and tasks of others
        raise missing
    return found


def _is_plain(text: str) -> bool:
    return len(text) <= _LONGEST and "\0" not in text
