"""Builds the model of a config."""

from __future__ import annotations

from collections.abc import Mapping

from jaxvlm.config import Config, LoraConfig, ModelConfig, StageConfig
from jaxvlm.families.registry import family_file
from jaxvlm.models.vlm import Model, make_model


def build_model(config: ModelConfig, adapters: Mapping[str, LoraConfig] | None = None) -> Model:
    """The model of a config; only shapes are computed. Equal configs give the same model, so programs are reused.

    Args:
      adapters: part -> its adapters.

    Raises:
      UserError: the config has an invalid value, or adapters match no projection.
    """
    return make_model(family_file(config.family, "model").MODULE, config, tuple((adapters or {}).items()))


def stage_model(config: Config, stage: StageConfig) -> Model:
    """The model of a stage: the recipe's, with the adapters that the stage trains."""
    return build_model(config.model, stage.parts.adapters())
