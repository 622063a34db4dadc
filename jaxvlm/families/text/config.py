"""Settings of a decoder alone."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxvlm.config import MediaConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class TextConfig(ModelConfig):
    """`config.model` of the family "text": a decoder, and nothing before it."""

    parts: ClassVar[tuple[str, ...]] = ("language",)


MODEL = TextConfig
MEDIA = MediaConfig
