"""Settings of a LLaVA in addition to those that all families share."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from jaxvlm.config import Choices, MediaConfig, ModelConfig, ProjectorConfig, VisionConfig


@dataclasses.dataclass(frozen=True)
class LlavaConfig(ModelConfig):
    """`config.model` of the family "llava"."""

    vision: VisionConfig
    projector: ProjectorConfig


@dataclasses.dataclass(frozen=True)
class LlavaMedia(MediaConfig):
    """`config.stage.NAME.data.media` of the family "llava"; a unit is an image slot."""

    aspect: Annotated[str, Choices(("pad", "square", "squeeze"))]  # see `jaxvlm.data.media.images.load_image`


MODEL = LlavaConfig
MEDIA = LlavaMedia
