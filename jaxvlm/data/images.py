"""Images: decoded, turned upright, made RGB, brought to one size; uint8 out. Augmentation too."""

from __future__ import annotations

import io
import random as python_random
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxvlm.data.records import RecordError

ASPECTS = ("pad", "square")
CLIP_GREY = (122, 116, 104)  # `VisionConfig.pad_colour` of CLIP
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N", "I"}  # Pillow's grey of 16 bits; "I" is what it makes of a 16-bit PGM


def load_image(
    source: str | bytes, size: int, aspect: str, origin: str = "", *, pad_colour: tuple[int, int, int] = CLIP_GREY
) -> np.ndarray:
    """Decodes an image and brings it to `size` x `size` pixels.

    Orientation in EXIF is applied, transparency laid over white, 16-bit grey scaled to 8, and of an animation the
    first frame is taken. Then, as CLIP's preprocessing does, bicubic both times:

      pad     the whole image, centred on a square of one colour, resized (LLaVA-1.5's fine-tuning)
      square  resized until the shortest edge fits, the middle cut out (LLaVA-1.5's first stage)

    Args:
      source: path of an image file, or its bytes.
      size: pixels along each side.
      aspect: "pad" or "square".
      origin: which record asks, for messages.
      pad_colour: RGB of the square, the encoder's `VisionConfig.pad_colour`.

    Returns:
      uint8[size, size, 3], RGB.

    Raises:
      RecordError: the image is missing, broken, cut short, too large, or of floating-point pixels.
      ValueError: an unknown aspect.

    Source: LLaVA llava/mm_utils.py, expand2square; HF CLIPImageProcessor (equal to its Pillow backend to the pixel).
    """
    if aspect not in ASPECTS:
        raise ValueError(f"aspect {aspect!r} is not one of {', '.join(ASPECTS)}")
    try:
        with _open(source) as image:
            _check_area(image.size, size, aspect)
            ImageOps.exif_transpose(image, in_place=True)
            rgb = _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on broken files
        raise _image_error(source, origin, error) from error
    return np.asarray(_pad(rgb, size, pad_colour) if aspect == "pad" else _crop(rgb, size))


def read_size(source: str | bytes, origin: str = "") -> tuple[int, int]:
    """Width and height in pixels as stored, from the header alone: nothing is decoded.

    Raises:
      RecordError: the image is missing, no image, or too large.
    """
    try:
        with _open(source) as image:
            return image.size
    except Exception as error:
        raise _image_error(source, origin, error) from error


def check_header(source: str | bytes, size: int, aspect: str, origin: str = "") -> None:
    """Checks what can be known of `load_image` with the same arguments from the header alone.

    Raises:
      RecordError: the image is missing, no image, too large, or so long that its square would be too large.
    """
    shape = read_size(source, origin)
    try:
        _check_area(shape, size, aspect)
    except Image.DecompressionBombError as error:
        raise _image_error(source, origin, error) from error


def augment(pixels_YXC: np.ndarray, random: python_random.Random, *, flip: bool, shift: int) -> np.ndarray:
    """Mirrors an image left to right and moves it, at random.

    Args:
      pixels_YXC: uint8[Y, X, 3].
      random: where chance comes from; three numbers are drawn whatever the options are.
      flip: mirror one time in two. Never up and down: a picture has an up.
      shift: move by up to so many pixels along each axis, fewer than there are; what is uncovered repeats the edge.

    Returns:
      uint8[Y, X, 3], a new array or a view.
    """
    mirrored = random.random() < 0.5
    down, right = random.randint(-shift, shift), random.randint(-shift, shift)
    if flip and mirrored:
        pixels_YXC = pixels_YXC[:, ::-1]
    return _moved(_moved(pixels_YXC, down, axis=0), right, axis=1)


def _check_area(shape: tuple[int, int], size: int, aspect: str) -> None:
    """A strip of 1 x 60,000 pixels is a small file, but the square round it takes 10 GB."""
    short, long = sorted(shape)
    area = long * long if aspect == "pad" else size * (size * long // max(short, 1))
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # where Pillow, too, refuses; None in Pillow is no limit
    if limit and area > limit:
        raise Image.DecompressionBombError(
            f"{shape[0]} x {shape[1]} takes {area} pixels on the way to a square, the limit is {limit}"
        )


def _open(source: str | bytes) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def _moved(pixels_YXC: np.ndarray, by: int, axis: int) -> np.ndarray:
    if not by:
        return pixels_YXC
    moved = np.roll(pixels_YXC, by, axis)  # ten times as fast as indexing with clipped coordinates
    lines = np.swapaxes(moved, 0, axis)
    if by > 0:
        lines[:by] = lines[by]
    else:
        lines[by:] = lines[by - 1]
    return moved


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 bits a channel")
    if image.mode in _DEEP:
        # Pillow's own conversion would clip at 255; 65535 / 255 is 257.
        grey = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data or image.mode == "La":
        # "La" and "RGBa" (colour multiplied by alpha) convert only to their own kind.
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _pad(image: Image.Image, size: int, colour: tuple[int, int, int]) -> Image.Image:
    width, height = image.size
    side = max(width, height)
    if width != height:
        canvas = Image.new("RGB", (side, side), colour)
        canvas.paste(image, ((side - width) // 2, (side - height) // 2))
        image = canvas
    return image.resize((size, size), Image.Resampling.BICUBIC)


def _crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(size * long / short)
    new_width, new_height = (size, new_long) if width <= height else (new_long, size)
    image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _image_error(source: str | bytes, origin: str, error: Exception) -> RecordError:
    """Says in a line what Pillow's decoders say in a dozen exception types."""
    name = f"an image of {len(source)} bytes" if isinstance(source, bytes) else source
    where = f"{origin}: " if origin else ""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) and isinstance(source, str):
        folder = Path(source).parent
        hint = "" if folder.is_dir() else f"; the folder {folder} does not exist either"
        return RecordError(
            f"{where}image {name} is missing{hint}; check its path and data.image_folder", origin, "image_missing"
        )
    if isinstance(error, Image.DecompressionBombError):
        return RecordError(f"{where}image {name} is too large ({error}); make it smaller", origin, "image_too_large")
    if isinstance(error, UnidentifiedImageError):
        found = "it is empty" if _is_empty(source) else "its first bytes are of no format that Pillow reads"
        return RecordError(
            f"{where}{name} is no image: {found}; replace the file or remove the record", origin, "image_broken"
        )
    return RecordError(
        f"{where}image {name} cannot be decoded ({error}); replace the file or remove the record",
        origin,
        "image_broken",
    )


def _is_empty(source: str | bytes) -> bool:
    return len(source) == 0 if isinstance(source, bytes) else Path(source).stat().st_size == 0
