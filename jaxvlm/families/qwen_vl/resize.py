"""The size to which a Qwen-VL resizes an image or the frames of a video.

Source: `smart_resize` in HF models/qwen2_vl/image_processing_qwen2_vl.py and
models/qwen3_vl/video_processing_qwen3_vl.py.
"""

from __future__ import annotations

import math

from jaxvlm.media import MediaError

MAX_RATIO = 200  # of the sides of an image
FRAME_PAIR = 2  # frames of a video in one patch


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Rounds both sides to multiples of `factor`, with an area within the limits and about the same ratio.

    A side halfway between two multiples is rounded to the even one. An extreme strip, or limits that are
    close together, may end outside the limits; the result, resized again, then has another size.

    Args:
      height: in pixels, like `width`.
      factor: pixels along each side of a token.
      min_pixels: area to which a smaller image is enlarged.
      max_pixels: area to which a larger image is reduced.

    Returns:
      Height and width in pixels.

    Raises:
      MediaError: one side is more than 200 times the other.
    """
    return _fit(height, width, factor, min_pixels, max_pixels, 1, 1)


def resize_volume(
    frames: int, height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """As `smart_resize` for the frames of a video of Qwen3-VL, whose limits are of frames x height x width.

    A side below `factor` is first enlarged to it.

    Args:
      frames: that are taken from the video, at least 2.

    Raises:
      MediaError: one side is more than 200 times the other.
    """
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    rounded_frames = round(frames / FRAME_PAIR) * FRAME_PAIR
    return _fit(height, width, factor, min_pixels, max_pixels, frames, rounded_frames)


def _fit(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int, frames: int, rounded_frames: int
) -> tuple[int, int]:
    """Compares the limits with the rounded size, and scales the original one if it is outside of them."""
    if max(height, width) / min(height, width) > MAX_RATIO:
        raise MediaError(
            "image_ratio",
            f"an image of {width} x {height} pixels is longer than {MAX_RATIO}:1; crop it or remove the record",
        )
    rows, columns = round(height / factor), round(width / factor)
    size, rounded_size = frames * height * width, rounded_frames * rows * columns * factor**2
    if rounded_size > max_pixels:
        shrink = math.sqrt(size / max_pixels)
        rows, columns = (max(1, math.floor(side / shrink / factor)) for side in (height, width))
    elif rounded_size < min_pixels:
        grow = math.sqrt(min_pixels / size)
        rows, columns = (math.ceil(side * grow / factor) for side in (height, width))
    return rows * factor, columns * factor
