"""A picture of a page with the boxes of its texts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw


def with_boxes(pixels: np.ndarray, boxes: Sequence[Sequence[float]]) -> Image.Image:
    """The picture with boxes, and points as small circles, drawn on it; coordinates are shares of its sides."""
    picture = Image.fromarray(pixels)
    height, width = pixels.shape[:2]
    for numbers in boxes:
        x0, y0, x1, y1 = (n * (width, height)[at % 2] for at, n in enumerate((*numbers, *numbers)[:4]))
        corners = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        draw, colour = ImageDraw.Draw(picture), (255, 0, 64)
        if len(numbers) == 2:
            draw.ellipse([x0 - 3, y0 - 3, x0 + 3, y0 + 3], outline=colour)
        else:
            draw.rectangle(corners, outline=colour)
    return picture
