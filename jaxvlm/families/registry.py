"""Families by name. A family is a module with the files that docs/add_a_family.md lists.

A name that is not in the table is a module, such as "my_package.my_family".
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxvlm.config import Config, DataConfig, MediaConfig, ModelConfig
from jaxvlm.config_reading import build_config
from jaxvlm.errors import UserError
from jaxvlm.media import MediaLayout

if TYPE_CHECKING:  # data workers import this file without JAX
    from jaxvlm.weights.codec import Codec

FAMILIES = {"llava": "jaxvlm.families.llava"}
# `model_type` of config.json -> family.
MODEL_TYPES = dict.fromkeys(["llava_llama", "llava", "llava_mistral", "llava_qwen", "llava_qwen2", "share4v"], "llava")


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
    return build_config(Config, values, where, classes={ModelConfig: file.MODEL, MediaConfig: file.MEDIA})


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
