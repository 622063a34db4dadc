"""The options of a recipe as data: type, allowed values, default and explanation of each.

The types and allowed values are those of the dataclasses of `config.py` and of the recipe's family; defaults and
explanations those of `configs/base.py`, where an option has them, else those of its dataclass. `--help-config` prints
them, and the studio makes its forms of them. It needs no jax.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from ml_collections import ConfigDict

from configs import base
from jaxvlm.config import Choices, Config, MediaConfig, ModelConfig
from jaxvlm.errors import UserError
from jaxvlm.families.registry import family_file

ABSENT = "absent"  # in place of a default: every recipe has to set it
_NAMES = {bool: "bool", int: "int", float: "float", str: "str"}


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a recipe.

    Attributes:
      key: its path below `config`, such as "stage.finetune.epochs".
      group: the path of its group; "" for the recipe's own options.
      type: "bool", "int", "float", "str", or "literal" for what is written as in Python: tuples and dicts.
      can_be_none: whether None is a value.
      choices: the allowed values; () if there are others than can be listed.
      is_open: whether values that are not among `choices` may be right.
      default: of configs/base.py or the dataclass; `ABSENT` if there is none.
      value: the recipe's.
      help: one explanation, without markup; "" if the name says it.
    """

    key: str
    group: str
    type: str
    can_be_none: bool
    choices: tuple[str, ...]
    is_open: bool
    default: Any
    value: Any
    help: str


def list_options(recipe: ConfigDict) -> list[Option]:
    """The options of a recipe, in the order of the dataclasses.

    Raises:
      UserError: it names no family.
    """
    family = recipe.model.family if "model" in recipe and "family" in recipe.model else None
    if not isinstance(family, str):
        raise UserError('the recipe has no model.family; set it, such as c.model.family = "llava"')
    file = family_file(family, "config")
    return list(_walk(recipe, Config, "", {ModelConfig: file.MODEL, MediaConfig: file.MEDIA}))


def find_options(options: list[Option], word: str) -> list[Option]:
    """Those with `word` in their path or explanation, whatever its case."""
    word = word.lower()
    return [option for option in options if word in option.key.lower() or word in option.help.lower()]


def _walk(values: Mapping[str, Any], kind: Any, group: str, classes: Mapping[type, type]) -> Iterator[Option]:
    """The options of the group `values`, whose dataclass is `kind`."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for name in (name for name in hints if name in values):  # `resolve` reports those without a hint
        key, value = f"{group}.{name}".strip("."), values[name]
        cls, choices, optional = _unpacked(hints[name])
        cls = classes.get(cls, cls)
        if typing.get_origin(cls) is dict:  # of stages
            for stage, its_values in value.items():
                yield from _walk(its_values, typing.get_args(cls)[1], f"{key}.{stage}", classes)
        elif dataclasses.is_dataclass(cls) and isinstance(value, ConfigDict):
            yield from _walk(value, cls, key, classes)
        else:
            field = next(f for f in dataclasses.fields(kind) if f.name == name)
            yield Option(
                key,
                group,
                _NAMES.get(cls, "literal"),
                optional,
                choices.values,
                choices.is_open,
                _default(_general(key), field),
                value,
                _explanations().get(_general(key))
                or _comments_of(kind).get(name)
                or _explanations().get(_general(group), ""),
            )


def _unpacked(hint: Any) -> tuple[Any, Choices, bool]:
    """The type itself, its choices, and whether None is allowed."""
    choices = Choices((), is_open=True)
    if typing.get_origin(hint) is Annotated:
        hint, choices = typing.get_args(hint)[:2]
    if not isinstance(hint, types.UnionType):
        return hint, choices, False
    inner = next(a for a in typing.get_args(hint) if a is not types.NoneType)
    inner, own, _ = _unpacked(inner)
    return inner, own if own.values else choices, True


def _general(key: str) -> str:
    """A path with NAME in place of a stage's name."""
    parts = key.split(".")
    return ".".join([parts[0], "NAME", *parts[2:]]) if parts[0] == "stage" and len(parts) > 2 else key


@functools.cache
def _defaults() -> dict[str, Any]:
    """The values of configs/base.py by their general paths."""
    recipe = base.get_config()
    recipe.stage.NAME = base.stage()

    def leaves(values: ConfigDict, group: str) -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, ConfigDict):
                yield from leaves(value, f"{group}{name}.")
            else:
                yield f"{group}{name}", value

    return dict(leaves(recipe, ""))


def _default(key: str, field: dataclasses.Field) -> Any:
    if key in _defaults():
        return _defaults()[key]
    return ABSENT if field.default is dataclasses.MISSING else field.default


@functools.cache
def _explanations() -> dict[str, str]:
    """The comments of configs/base.py by the general paths of the options that they explain."""
    found = {}
    for function, prefix in ((base.get_config, ""), (base.stage, "stage.NAME.")):
        for path, text in _comments(inspect.getsource(function)).items():
            root, _, rest = path.partition(".")
            if root == "c" and rest:
                found[prefix + rest] = text
            elif root == "lora":  # the loop over the parts that can have adapters
                found |= {f"{prefix}parts.lora.{part}.{rest}": text for part in ("vision", "language")}
    return found


@functools.cache
def _comments_of(kind: type) -> dict[str, str]:
    """The comments of a dataclass and its bases by field."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if dataclasses.is_dataclass(cls):
            found |= _comments(inspect.getsource(cls))
    return found


def _comments(source: str) -> dict[str, str]:
    """What is assigned to, as written, and its comment: at its end, and above it without a blank line between."""
    source = textwrap.dedent(source)
    lines = source.splitlines()
    comments: dict[int, str] = {}  # by line, from 1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.removeprefix("#").strip()
    found = {}
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.end_lineno is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        above: list[str] = []
        line = node.lineno - 1
        while line >= 1 and lines[line - 1].lstrip().startswith("#"):
            above.insert(0, comments[line])
            line -= 1
        own = [comments[n] for n in range(node.lineno, node.end_lineno + 1) if n in comments]
        if above or own:
            found[ast.unparse(target)] = " ".join([*above, *own])
    return found
