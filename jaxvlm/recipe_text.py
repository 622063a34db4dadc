"""Recipe files made from values: a base recipe, and what is set in it.

A file that `write_recipe_text` made can be read back as base and values. Any other recipe is a program of its own, of
which nothing but running it tells the values.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxvlm.errors import UserError

_MODULE = re.compile(r"configs\.[a-z_][a-z0-9_]*")
_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_WIDTH = 120  # of a line; a longer value is written over several


@dataclasses.dataclass(frozen=True)
class RecipeText:
    """What a written recipe consists of.

    Attributes:
      base: module of the recipe that it starts from, such as "configs.quickstart".
      values: what it sets, by the path below `config`: "stage.finetune.epochs".
      title: the first line of its docstring.
    """

    base: str
    values: Mapping[str, Any]
    title: str


def write_recipe_text(recipe: RecipeText, *, file: str = "RECIPE.py") -> str:
    """The text of a recipe; `read_recipe_text` gives back what went in.

    Args:
      recipe: its values are None, bools, numbers, strings, and tuples, lists and dicts of these.
      file: the path under which it will be saved, for the command in its docstring.

    Raises:
      UserError: every key that is no path, and every value that is no literal; or a base that is not in `configs`.
    """
    if not _MODULE.fullmatch(recipe.base) or importlib.util.find_spec(recipe.base) is None:
        raise UserError(f'"{recipe.base}" is no recipe to start from; name one of configs/, such as configs.quickstart')
    problems = [f"{key} is no path of an option" for key in recipe.values if not _KEY.fullmatch(key)]
    problems += [
        f"{key} = {value!r} is no literal; recipes hold numbers, texts, None, and tuples and dicts of them"
        for key, value in recipe.values.items()
        if not _is_literal(value)
    ]
    if problems:
        raise UserError("; ".join(problems))
    name = recipe.base.rpartition(".")[2]
    title = _title(recipe.title) or f"From {name}."
    sets = "".join(f"    {_assignment(key, value)}\n" for key, value in recipe.values.items())
    return (
        f'"""{title}\n\n    python -m jaxvlm.train --config {file}\n\n'
        f'It is configs/{name}.py with the values below.\n"""\n\n'
        f"from ml_collections import ConfigDict\n\nfrom configs import {name}\n\n\n"
        f'def get_config() -> ConfigDict:\n    """The recipe."""\n    c = {name}.get_config()\n{sets}    return c\n'
    )


def read_recipe_text(path: Path) -> RecipeText | None:
    """What `write_recipe_text` put into a file, which is not run; None if the file has logic of its own.

    Raises:
      UserError: it is not Python.
      OSError: it cannot be read.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"the recipe {path} cannot be read: {type(error).__name__}: {error}") from error
    title = (ast.get_docstring(tree) or "").partition("\n")[0]
    match [node for node in tree.body if not _is_text(node)]:
        case [
            ast.ImportFrom(module="ml_collections", level=0),
            ast.ImportFrom(module="configs", level=0, names=[ast.alias(name=base, asname=None)]),
            ast.FunctionDef(name="get_config", body=body, decorator_list=[]) as function,
        ] if not ast.unparse(function.args):
            statements = [node for node in body if not _is_text(node)]
        case _:
            return None
    if len(statements) < 2 or ast.unparse(statements[0]) != f"c = {base}.get_config()":
        return None
    if ast.unparse(statements[-1]) != "return c":
        return None
    values: dict[str, Any] = {}
    for node in statements[1:-1]:
        match node:
            case ast.Assign(targets=[ast.Attribute() as target], value=value):
                root, _, key = ast.unparse(target).partition(".")
            case _:
                return None
        if root != "c" or not _KEY.fullmatch(key):
            return None
        try:
            values[key] = ast.literal_eval(value)
        except ValueError:
            return None
    return RecipeText(f"configs.{base}", values, title)


def _title(text: str) -> str:
    """As the first line of a docstring: without what would end or escape it."""
    return " ".join(text.replace("\\", "/").replace('"', "'").split())


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_literal(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_literal, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_literal(item) for key, item in value.items())
    if type(value) is float:
        return value == value and abs(value) != float("inf")  # their repr is no literal
    return value is None or type(value) in (bool, int, str)


def _assignment(key: str, value: Any) -> str:
    line = f"c.{key} = {_written(value)}"
    if len(line) + 4 <= _WIDTH or not isinstance(value, (tuple, list)) or not value:
        return line
    brackets = "()" if isinstance(value, tuple) else "[]"
    return "\n".join(
        [f"c.{key} = {brackets[0]}", *(f"        {_written(item)}," for item in value), f"    {brackets[1]}"]
    )


def _written(value: Any) -> str:
    """`repr` with the quotes that formatters like."""
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_quoted(key)}: {_written(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(_written, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def _quoted(text: str) -> str:
    written = repr(text)
    return f'"{written[1:-1]}"' if written[0] == "'" and '"' not in text else written
