"""The media of a model that has none: every image is refused."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from jaxvlm.config import MediaConfig
from jaxvlm.families.text.config import TextConfig
from jaxvlm.media import MediaError, MediaExtent, MediaLayout, Medium, Picture, Size


class NoMedia(NamedTuple):
    """`Batch.media` of rows of text."""


class TextOnly(MediaLayout):
    """No image fits into a row."""

    unit = "images"
    least_positions = 0

    def __init__(self, units: int):
        """Stores `data.media.units` of the recipe, which must be 0."""
        self._units = units

    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def measure(self, size: Size) -> MediaExtent:
        """Raises `MediaError`."""
        raise MediaError(
            "image_without_encoder",
            'it has an image, and a model of the family "text" has no encoder; train a model with one, or leave such '
            "records out",
        )

    def spec(self, rows: int, units: int) -> NoMedia:
        """No arrays."""
        return NoMedia()

    def load(self, source: Medium, origin: str, *, exact: bool) -> np.ndarray:
        """Is never called, since `measure` refuses every image."""
        raise NotImplementedError

    def blank(self, size: Size) -> np.ndarray:
        """Is never called."""
        raise NotImplementedError

    def units_of(self, loaded: np.ndarray) -> int:
        """Is never called."""
        raise NotImplementedError

    def write(self, media: Any, row: int, at: int, loaded: np.ndarray) -> np.ndarray:
        """Is never called."""
        raise NotImplementedError

    def preview(self, media: Any, row: int) -> list[Picture]:
        """No pictures."""
        return []

    def store(self, source: Medium, origin: str, jpeg: int) -> bytes:
        """Is never called."""
        raise NotImplementedError

    def problems(self, shift: int) -> list[str]:
        """Options that need an image."""
        found = {"data.media.units": self._units, "data.augment.shift": shift}
        return [
            f"{name} = {value}, expected 0: a model of text alone has no images"
            for name, value in found.items()
            if value
        ]


def make_layout(model: TextConfig, media: MediaConfig) -> TextOnly:
    """The layout of a recipe."""
    return TextOnly(media.units)
