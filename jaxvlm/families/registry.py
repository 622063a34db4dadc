"""Families by name. A family is a module with the files that docs/add_a_family.md lists.

A name that is not in the table is a module, such as "my_package.my_family".
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxvlm.config import PARTS, Config, DataConfig, MediaConfig, ModelConfig
from jaxvlm.config_reading import build_config
from jaxvlm.errors import UserError
from jaxvlm.media import MediaLayout

if TYPE_CHECKING:  # data workers import this file without JAX
    from jaxvlm.weights.codec import Codec

FAMILIES = {
    "llava": "jaxvlm.families.llava",
    "qwen_vl": "jaxvlm.families.qwen_vl",
    "text": "jaxvlm.families.text",
}
# `model_type` of config.json -> family.
MODEL_TYPES = dict.fromkeys(["llava_llama", "llava", "llava_mistral", "llava_qwen", "llava_qwen2", "share4v"], "llava")
MODEL_TYPES |= dict.fromkeys(["qwen2_vl", "qwen2_5_vl", "qwen3_vl"], "qwen_vl")


def family_file(family: str, name: str) -> types.ModuleType:
    """Imports the file `name` of a family's folder, and only that, so data workers import no JAX.

    Raises:
      UserError: there is no such family.
    """
    package = FAMILIES.get(family, family)
    try:
        importlib.import_module(package)
    except (ImportError, ValueError) as error:
        raise UserError(
            f'config.model.family = "{family}" is no family; known: {", ".join(FAMILIES)}, or a module that can be '
            f"imported ({error})"
        ) from error
    return importlib.import_module(f"{package}.{name}")


def resolve(values: Mapping[str, Any], where: str = "config") -> Config:
    """The recipe as frozen dataclasses, including those of its family.

    Args:
      values: `ConfigDict.to_dict()` of a recipe, or what `json` read of a saved one.
      where: the path of `values`, for messages.

    Raises:
      UserError: every unknown, missing and mistyped key, in one message; or no such family.
    """
    model = values.get("model")
    family = model.get("family") if isinstance(model, Mapping) else None
    if not isinstance(family, str):
        raise UserError(f"{where}.model.family is missing; set it to one of {', '.join(FAMILIES)}")
    file = family_file(family, "config")
    _check_parts(values, family, file.MODEL.parts, where)
    config = build_config(Config, values, where, classes={ModelConfig: file.MODEL, MediaConfig: file.MEDIA})
    lacking = [name for name, stage in config.stage.items() if not isinstance(stage.data.media, file.MEDIA)]
    if lacking:
        raise UserError(
            f"the config has missing key {', '.join(f'{where}.stage.{name}.data.media' for name in lacking)}"
        )
    return config


def _check_parts(values: Mapping[str, Any], family: str, has: tuple[str, ...], where: str) -> None:
    """Checks which parts a recipe has options of; `has` are those of the family.

    Raises:
      UserError: every part that the family does not have, or every one without a policy.
    """
    extra: list[str] = []
    lacking: list[str] = []

    def look(path: str, needed: tuple[str, ...]) -> None:
        group: Any = values
        for key in path.split("."):
            group = group.get(key) if isinstance(group, Mapping) else None
        # A saved run has None or "" for what its family does not have.
        given = {k: v for k, v in group.items() if v not in (None, "")} if isinstance(group, Mapping) else {}
        extra.extend(f"{where}.{path}.{part}" for part in PARTS if part in given and part not in has)
        lacking.extend(f"{where}.{path}.{part}" for part in needed if part not in given)

    look("model", ())
    look("init", ())
    stages = values.get("stage")
    for name in stages if isinstance(stages, Mapping) else ():
        look(f"stage.{name}.parts", has)
        look(f"stage.{name}.parts.lora", ())
    if extra:
        raise UserError(
            f'a model of the family "{family}" has no such part: {", ".join(extra)}; take them out, or set '
            f"{where}.model.family to one that has ({', '.join(name for name in FAMILIES if name != family)})"
        )
    if lacking:
        raise UserError(f"the config has missing key {', '.join(lacking)}")


def media_layout(model: ModelConfig, data: DataConfig) -> MediaLayout:
    """The layout of a stage's media.

    Raises:
      UserError: invalid settings of `data.media`.
    """
    return family_file(model.family, "layout").make_layout(model, data.media)


def codec(family: str) -> Codec:
    """The codec that reads and writes a family's Hugging Face folders.

    Raises:
      UserError: there is no such family, or it has no codec.
    """
    try:
        return family_file(family, "hf").CODEC
    except ModuleNotFoundError as error:
        package = FAMILIES.get(family, family)
        if error.name != f"{package}.hf":
            raise
        raise UserError(
            f'family "{family}" has no Hugging Face codec ({package.replace(".", "/")}/hf.py); its runs can be trained '
            "and evaluated, but neither exported nor compared"
        ) from error
