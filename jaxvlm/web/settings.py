"""The settings of a run by their keys, beside the defaults of `configs/base.py` and the settings of other runs."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import configs.base
from jaxvlm.web.texts import read_json

_ABSENT = object()


def settings_of(run: Path) -> dict[str, Any]:
    """Every value of a run's recipe by its key, such as "stage.finetune.epochs"; {} if the recipe cannot be read."""
    return dict(_leaves(read_json(run / "config.json") or {}, ""))


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from _leaves(value, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix, tree


@functools.cache
def _defaults() -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of a recipe, and those of any stage of it."""
    return tuple(
        dict(_leaves(json.loads(made().to_json()), "")) for made in (configs.base.get_config, configs.base.stage)
    )  # type: ignore[return-value]


def default_of(key: str) -> Any:
    """The default of a key; `_ABSENT` if the base recipe does not have it."""
    recipe, stage = _defaults()
    parts = key.split(".")
    if parts[0] == "stage" and len(parts) > 2:
        return stage.get(".".join(parts[2:]), _ABSENT)
    return recipe.get(key, _ABSENT)


def list_settings(run: Path, other: Path | None) -> list[dict[str, Any]]:
    """Each setting as {key, value, default, base_differs}, and with another run also {other, other_differs}.

    A key that `configs/base.py` does not have has `absent` true in place of a default; one that only the other run has
    has no `value`.
    """
    own, others = settings_of(run), settings_of(other) if other else {}
    found = []
    for key in [*own, *(key for key in others if key not in own)]:
        entry: dict[str, Any] = {"key": key}
        default = default_of(key)
        if key in own:
            entry["value"] = own[key]
        entry |= {"absent": True} if default is _ABSENT else {"default": default}
        entry["base_differs"] = default is not _ABSENT and key in own and own[key] != default
        if other:
            entry |= {"other": others[key]} if key in others else {}
            entry["other_differs"] = own.get(key, _ABSENT) != others.get(key, _ABSENT)
        found.append(entry)
    return found


def differing_settings(runs: Sequence[tuple[str, Path]]) -> list[dict[str, Any]]:
    """Settings that are not the same in all runs: [{key, values: {run: value}}]; a run without the key is not there."""
    settings = {name: settings_of(path) for name, path in runs}
    keys = dict.fromkeys(key for found in settings.values() for key in found)
    rows = []
    for key in keys:
        values = {name: found[key] for name, found in settings.items() if key in found}
        if len(values) < len(settings) or any(value != next(iter(values.values())) for value in values.values()):
            rows.append({"key": key, "values": values})
    return rows
