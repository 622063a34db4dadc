"""LLaVA's images: one slot each, of one size, with P features in raster order."""

from __future__ import annotations

import random as python_random
from typing import Any

import numpy as np
from PIL import Image

from jaxvlm.batch import ArraySpec, Images
from jaxvlm.config import VisionConfig
from jaxvlm.data.media.encoding import encode
from jaxvlm.data.media.images import ASPECTS, MAX_PIXELS, augment, load_image, resized_area
from jaxvlm.families.llava.config import LlavaConfig, LlavaMedia
from jaxvlm.media import MediaError, MediaExtent, MediaLayout, Medium, Picture, Size, Video


class ImageSlots(MediaLayout):
    """Every image fills one slot of `image_size` x `image_size` pixels and P positions."""

    unit = "images"

    def __init__(self, image_size: int, features: int, pad_colour: tuple[int, int, int], aspect: str):
        """Stores its arguments.

        Args:
          image_size: pixels along each side.
          features: P, of an image.
          pad_colour: RGB around an image that is not square.
          aspect: "pad", "square" or "squeeze", see `load_image`.
        """
        self.image_size, self.aspect, self.pad_colour = image_size, aspect, pad_colour
        self.least_positions = features
        self._extent = MediaExtent(features, 1)

    @classmethod
    def of(cls, vision: VisionConfig, aspect: str) -> ImageSlots:
        """The slots of a vision encoder."""
        return cls(vision.image_size, vision.features_per_image, vision.pad_colour, aspect)

    def settings(self) -> dict[str, Any]:
        """Size, aspect and colour."""
        return {"size": self.image_size, "aspect": self.aspect, "pad_colour": list(self.pad_colour)}

    def measure(self, size: Size) -> MediaExtent:
        """P positions and one slot; raises if the square of a long strip would not fit into memory."""
        # A strip of 1 x 60,000 pixels is a small file, but the square around it takes 10 GB.
        area = resized_area((size.height, size.width), self.image_size, self.aspect)
        if area > MAX_PIXELS:
            raise MediaError(
                "image_too_large",
                f"an image is too large ({size.width} x {size.height} takes {area:,} pixels on the way to a square, "
                f"the limit is {MAX_PIXELS:,}); make it smaller",
            )
        return self._extent

    def spec(self, rows: int, units: int) -> Images:
        """uint8[rows, units, Y, X, 3]."""
        return Images(ArraySpec.of((rows, units, self.image_size, self.image_size, 3), np.uint8))

    def load(self, source: Medium, origin: str, *, exact: bool) -> np.ndarray:
        """uint8[Y, X, 3], see `load_image`."""
        assert not isinstance(source, Video), "`extent` refuses videos"
        return load_image(source, self.image_size, self.aspect, origin, pad_colour=self.pad_colour, exact=exact)

    def blank(self, size: Size) -> np.ndarray:
        """A slot of the padding colour, about 0 after normalisation."""
        return np.full((self.image_size, self.image_size, 3), self.pad_colour, np.uint8)

    def augment(self, loaded: np.ndarray, random: python_random.Random, *, flip: bool, shift: int) -> np.ndarray:
        """Mirrored and moved, see `images.augment`."""
        return augment(loaded, random, flip=flip, shift=shift)

    def units_of(self, loaded: np.ndarray) -> int:
        """One slot."""
        return 1

    def write(self, media: Images, row: int, at: int, loaded: np.ndarray) -> np.ndarray:
        """Fills slot `at`, which owns features at * P to at * P + P - 1."""
        media.pixels[row, at] = loaded
        return at * self.least_positions + np.arange(self.least_positions, dtype=np.int32)

    def preview(self, media: Images, row: int) -> list[Picture]:
        """All slots."""
        P = self.least_positions
        slots = np.asarray(media.pixels[row])
        return [Picture(pixels, slot * P + np.arange(P, dtype=np.int32)) for slot, pixels in enumerate(slots)]

    def store(self, source: Medium, origin: str, jpeg: int) -> bytes:
        """A PNG or JPEG of the slot's size."""
        pixels = self.load(source, origin, exact=False)
        return encode(Image.fromarray(pixels), jpeg)

    def problems(self, shift: int) -> list[str]:
        """Reports an unknown aspect, and a shift as large as the image."""
        found = []
        if self.aspect not in ASPECTS:
            found.append(f"data.media.aspect = {self.aspect!r}, expected {' or '.join(ASPECTS)}")
        if shift >= self.image_size:
            found.append(f"data.augment.shift = {shift}, expected less than the {self.image_size} pixels there are")
        return found


def make_layout(model: LlavaConfig, media: LlavaMedia) -> ImageSlots:
    """The slots of a recipe."""
    return ImageSlots.of(model.vision, media.aspect)
