"""Frozen dataclasses of `config.py` from nested mappings, with types checked and every mistake named, and back."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from jaxvlm.config import MixConfig
from jaxvlm.errors import UserError, nearest

T = TypeVar("T")


def build_config(
    cls: type[T], values: Mapping[str, Any], where: str = "config", *, classes: Mapping[type, type] | None = None
) -> T:
    """Makes the frozen dataclass `cls` from nested mappings. For a whole recipe see `families.registry.resolve`.

    Args:
      cls: one of the dataclasses of this file.
      values: `ConfigDict.to_dict()` of a recipe, or what `json` read of a saved one.
      where: the path of `values` in the recipe, for messages.
      classes: subclasses to make in place of dataclasses of this file, such as those of a family.

    Raises:
      UserError: every unknown, missing and mistyped key, in one message.
    """
    problems: list[str] = []
    result = _convert(cls, values, where, problems, classes or {})
    if problems:
        raise UserError("the config has " + "; ".join(problems))
    return result


def to_dict(config: Any) -> dict[str, Any]:
    """The nested plain dict (JSON-ready) of a dataclass that `build_config` made."""
    return dataclasses.asdict(config)


def _convert(kind: Any, value: Any, where: str, problems: list[str], classes: Mapping[type, type]) -> Any:
    """Converts `value` to the annotation `kind`; appends to `problems` what does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        return _convert(next(a for a in arguments if a is not types.NoneType), value, where, problems, classes)
    if kind is MixConfig and type(value) in (int, float):
        value = {"weight": value}
    if dataclasses.is_dataclass(kind):
        return _convert_dataclass(classes.get(typing.cast(type, kind), kind), value, where, problems, classes)
    if origin is dict and isinstance(value, Mapping):
        return {k: _convert(arguments[1], v, f"{where}.{k}", problems, classes) for k, v in value.items()}
    if origin is tuple and isinstance(value, (tuple, list)):
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(kinds) == len(value):
            return tuple(
                _convert(k, v, f"{where}[{i}]", problems, classes)
                for i, (k, v) in enumerate(zip(kinds, value, strict=True))
            )
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    problems.append(f"{where} = {value!r}, expected {getattr(kind, '__name__', kind) if not origin else kind}")
    return value


_RENAMED = {"images": "media.units", "aspect": "media.aspect"}  # options of a stage's data in older recipes


def _convert_dataclass(kind: Any, value: Any, where: str, problems: list[str], classes: Mapping[type, type]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(
            f"{where} = {value!r}, expected a dict of {', '.join(f.name for f in dataclasses.fields(kind))}"
        )
        return None
    hints = typing.get_type_hints(kind)
    for name in value:
        if name not in hints:
            near = _RENAMED.get(name, "") if where.endswith(".data") else ""
            near = near or nearest(name, hints)
            hint = f"did you mean {where}.{near}?" if near else f"known: {', '.join(hints)}"
            problems.append(f"unknown key {where}.{name} ({hint})")
    required = {f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING}
    problems.extend(f"missing key {where}.{name}" for name in sorted(required - set(value)))
    fields = {n: _convert(h, value[n], f"{where}.{n}", problems, classes) for n, h in hints.items() if n in value}
    return None if problems else kind(**fields)
