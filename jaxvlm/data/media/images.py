"""Decodes images to upright RGB of one size, uint8; also augmentation."""

from __future__ import annotations

import contextlib
import io
import os
import random as python_random
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from jaxvlm.data.records import RecordError
from jaxvlm.media import Size

try:
    import cykooz_resizer as simd
except ImportError:  # it has no wheel for Linux on arm64; Pillow then resizes, equal to within 2 levels
    simd = None

ASPECTS = ("pad", "square", "squeeze")
IMAGE_REASONS = ("image_missing", "image_broken", "image_too_large")  # of a `RecordError`
CLIP_GREY = (122, 116, 104)  # `VisionConfig.pad_colour` of CLIP
MAX_FILE_BYTES = 2**28
MAX_PIXELS = 2**27  # decoded, and of the square that is resized; Pillow takes 4 bytes for each
MAX_JPEG_PASSES = 2**37  # pixels times passes over them: some 10 seconds; a progressive JPEG makes 10 passes

# Accepted formats by their first bytes. Of Pillow's forty formats those are left out that run another program (EPS),
# only point at other files, or are not used by data sets. Decoders are called directly: `Image.open` applies a limit
# that any library can change (Image.MAX_IMAGE_PIXELS).
_DECODERS: tuple[tuple[tuple[bytes, ...], type[ImageFile.ImageFile]], ...] = (
    ((b"\xff\xd8\xff",), JpegImageFile),
    ((b"\x89PNG\r\n\x1a\n",), PngImageFile),
    ((b"RIFF",), WebPImageFile),
    ((b"GIF87a", b"GIF89a"), GifImageFile),
    ((b"BM",), BmpImageFile),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile),
    ((b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"), PpmImageFile),
)
_AVIF = (b"ftypavif", b"ftypavis")  # from the fifth byte on; the first four are a length
_FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, PBM, PGM or PPM"
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N", "I"}  # Pillow's grey of 16 bits; "I" is what it makes of a 16-bit PGM
_ORIENTATION = 0x0112  # EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap rows and columns
_EXIF_TEXT = b"Raw profile type exif"  # the keyword of a PNG's text chunk in which ImageMagick writes EXIF
# An image that is enlarged has few pixels; one that shrinks more than 32 times would, by the SIMD resizer's 16-bit
# weights, be more than 2 levels off.
_SIMD_SHRINKS = 32
_TILE = (322, 323)  # TIFF tags of a tile's width and length
# The last bytes of whole files. (The WebP decoder notices a missing end at once; other formats have no such mark.)
_ENDS: tuple[tuple[type[ImageFile.ImageFile], bytes], ...] = (
    (JpegImageFile, b"\xff\xd9"),
    (PngImageFile, b"IEND\xaeB`\x82"),
    (GifImageFile, b";"),
)

# An image that cannot be decoded is an error of its record. Other warnings of Pillow's decoders (truncated metadata, a
# palette's transparency, a size below our limit) concern no pixel.
for _category in (UserWarning, Image.DecompressionBombWarning):
    warnings.filterwarnings("ignore", category=_category, module=r"PIL\.")


class _UnusableError(Exception):
    """A fault of an image file, and the reason under which the ledger counts it."""

    def __init__(self, finding: str, reason: str = "image_broken"):
        super().__init__(finding)
        self.reason = reason


def load_image(
    source: str | bytes,
    size: int,
    aspect: str,
    origin: str = "",
    *,
    pad_colour: tuple[int, int, int] = CLIP_GREY,
    exact: bool = True,
) -> np.ndarray:
    """Decodes an image and resizes it to `size` x `size` pixels.

    Orientation in EXIF is applied, transparency laid over white, 16-bit grey scaled to 8, and of an animation the
    first frame is taken. Then, as CLIP's preprocessing does, bicubic both times:

      pad     the whole image, centred on a square of one colour, resized (LLaVA-1.5's fine-tuning)
      square  resized until the shortest edge fits, the middle cut out (LLaVA-1.5's first stage)
      squeeze  the whole image, each axis resized on its own (SigLIP's preprocessing)

    Args:
      source: path of an image file, or its bytes.
      size: pixels along each side.
      aspect: "pad", "square" or "squeeze".
      origin: the record's place, for messages.
      pad_colour: RGB of the square, the encoder's `VisionConfig.pad_colour`.
      exact: resize bit for bit as Pillow; else "pad" may resize with SIMD, within 2 levels and in half the time.

    Returns:
      uint8[size, size, 3], RGB.

    Raises:
      RecordError: the image is missing, corrupt, truncated, too large, or of floating-point pixels.
      ValueError: an unknown aspect.

    Source: LLaVA llava/mm_utils.py, expand2square; HF CLIPImageProcessor and SiglipImageProcessor (equal to
    their Pillow backends to the pixel).
    """
    if aspect not in ASPECTS:
        raise ValueError(f"aspect {aspect!r} is not one of {', '.join(ASPECTS)}")
    rgb = decode(source, origin, check=lambda shape: _check_area(shape, size, aspect))
    if aspect == "pad":
        return _pad(rgb, size, pad_colour, exact=exact)
    return _crop(rgb, size) if aspect == "square" else _squeeze(rgb, size)


def decode(
    source: str | bytes, origin: str = "", *, check: Callable[[tuple[int, int]], None] = lambda shape: None
) -> Image.Image:
    """The image as displayed, RGB: EXIF orientation applied, transparency over white, grey of more bits scaled to 8.

    Args:
      source: path of an image file, or its bytes.
      origin: the record that holds it, for messages.
      check: called with (width, height) of the header before anything is decoded; may raise.

    Raises:
      RecordError: the image is missing, corrupt, truncated, too large, or of floating-point pixels.
    """
    try:
        with _open(source) as image:
            check(image.size)
            if isinstance(image, JpegImageFile):
                _check_passes(image)
            image.load()
            return _to_rgb(_upright(image))
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types on corrupt files
        raise _image_error(source, origin, error) from error


def read_size(source: str | bytes, origin: str = "") -> Size:
    """The size of an image as displayed, from the header and the end of the file.

    An interrupted download has a good header. So a file that does not end as files of its format do is decoded, to be
    sure: many of those are whole, with something after the image.

    Raises:
      RecordError: the file is missing, not an image, truncated or too large.
    """
    try:
        with _open(source) as image:
            width, height = image.size
            whole = _ends_whole(image)
            if _orientation(image) in _TURNED:
                width, height = height, width
    except Exception as error:
        raise _image_error(source, origin, error) from error
    if not whole:
        decode(source, origin)
    return Size(height, width)


def augment(pixels_YXC: np.ndarray, random: python_random.Random, *, flip: bool, shift: int) -> np.ndarray:
    """Mirrors an image left to right and moves it, at random.

    Args:
      pixels_YXC: uint8[Y, X, 3].
      random: the generator; three numbers are drawn whatever the options are.
      flip: mirror one time in two. Never up and down: a picture has an up.
      shift: move by at most that many pixels along each axis, fewer than there are; uncovered pixels repeat the edge.

    Returns:
      uint8[Y, X, 3], a new array or a view.
    """
    mirrored = random.random() < 0.5
    down, right = random.randint(-shift, shift), random.randint(-shift, shift)
    if flip and mirrored:
        pixels_YXC = pixels_YXC[:, ::-1]
    return _moved(_moved(pixels_YXC, down, axis=0), right, axis=1)


@contextlib.contextmanager
def _open(source: str | bytes) -> Iterator[ImageFile.ImageFile]:
    """Opens an image, checks its header against the limits, and decodes nothing."""
    if isinstance(source, bytes):
        _check_bytes(len(source))
        yield _identified(io.BytesIO(source))
        return
    status = os.stat(source)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe may block forever, and /dev/zero has no end
        raise _UnusableError("it is a folder, not a file" if stat.S_ISDIR(status.st_mode) else "it is no regular file")
    _check_bytes(status.st_size)
    with open(source, "rb") as file:
        yield _identified(file)


def _identified(file: IO[bytes]) -> ImageFile.ImageFile:
    start = file.read(12)
    if not start:
        raise _UnusableError("no image: it is empty")
    decoder = _find_decoder(start)
    if decoder is None:
        raise _UnusableError(f"no image: its first bytes are not those of {_FORMATS}")
    file.seek(0)
    image = decoder(file)
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _UnusableError(f"{width} x {height} pixels, the limit is {MAX_PIXELS:,}", "image_too_large")
    if isinstance(image, TiffImageFile):
        _check_tile(image)
    if image.mode == "F":
        raise _UnusableError("its pixels are floating-point numbers of unknown range; save it with 8 bits a channel")
    return image


def _find_decoder(start: bytes) -> type[ImageFile.ImageFile] | None:
    if start[4:12] in _AVIF:
        return AvifImageFile
    return next((decoder for prefixes, decoder in _DECODERS if start.startswith(prefixes)), None)


def starts_like_an_image(start: bytes) -> bool:
    """Whether bytes (12 are enough) begin as a file of one of the formats that are read."""
    return _find_decoder(start) is not None


def _ends_whole(image: ImageFile.ImageFile) -> bool:
    end = next((end for decoder, end in _ENDS if isinstance(image, decoder)), b"")
    assert image.fp is not None
    image.fp.seek(-len(end), os.SEEK_END)
    return image.fp.read(len(end)) == end


def _check_bytes(count: int) -> None:
    if count > MAX_FILE_BYTES:
        raise _UnusableError(f"a file of {count:,} bytes, the limit is {MAX_FILE_BYTES:,}", "image_too_large")


def _check_tile(image: TiffImageFile) -> None:
    """A tile is decoded whole, however little of it is inside the image."""
    width, height = (image.tag_v2.get(tag) or 0 for tag in _TILE)
    if width * height > MAX_PIXELS:
        raise _UnusableError(f"a tile has {width} x {height} pixels, the limit is {MAX_PIXELS:,}", "image_too_large")


def _check_passes(image: JpegImageFile) -> None:
    """Limits the scans of a JPEG: 16 bytes make libjpeg decode the whole image once more."""
    assert image.fp is not None
    pixels, position = image.width * image.height, image.fp.tell()
    most = image.fp.seek(0, os.SEEK_END) // 16
    if most * pixels > MAX_JPEG_PASSES:  # else not worth a search
        image.fp.seek(0)
        passes = image.fp.read().count(b"\xff\xda")  # never in coded pixels; possible in metadata
        if passes * pixels > MAX_JPEG_PASSES:
            raise _UnusableError(
                f"{image.width} x {image.height} pixels in {passes:,} scans, the limit of their product is "
                f"{MAX_JPEG_PASSES:,}",
                "image_too_large",
            )
    image.fp.seek(position)


def _check_area(shape: tuple[int, int], size: int, aspect: str) -> None:
    """Limits the square: a strip of 1 x 60,000 pixels is a small file, and the square around it takes 10 GB."""
    area = resized_area(shape, size, aspect)
    if area > MAX_PIXELS:
        raise _UnusableError(
            f"{shape[0]} x {shape[1]} takes {area:,} pixels on the way to a square, the limit is {MAX_PIXELS:,}",
            "image_too_large",
        )


def resized_area(shape: tuple[int, int], size: int, aspect: str) -> int:
    """The pixels of the largest picture between an image of this shape (sides in any order) and its square."""
    short, long = sorted(shape)
    if aspect == "pad":
        return long * long
    return size * (size * long // max(short, 1)) if aspect == "square" else size * max(size, long)


def _upright(image: Image.Image) -> Image.Image:
    """The image with its EXIF orientation applied; as stored if that cannot be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # broken metadata raises as many types as broken pixels
        return image
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: ImageFile.ImageFile) -> int | None:
    """The EXIF orientation of an image that is not decoded, None if there is none or it cannot be read."""
    try:
        if isinstance(image, PngImageFile) and not _has_exif(image):
            return None  # Pillow would decode the whole image to look for it
        return image.getexif().get(_ORIENTATION)
    except Exception:
        return None


def _has_exif(image: PngImageFile) -> bool:
    """Whether a PNG has a chunk that may hold EXIF, before or after its pixels."""
    assert image.fp is not None
    position = image.fp.tell()
    at, kind = 8, b""
    try:
        while kind != b"IEND":
            image.fp.seek(at)
            header = image.fp.read(8 + len(_EXIF_TEXT))
            if len(header) < 8:
                return False
            kind = header[4:8]
            if kind == b"eXIf" or header[5:8] in (b"EXt", b"TXt") and header[8:] == _EXIF_TEXT:
                return True
            at += 12 + int.from_bytes(header[:4], "big")
        return False
    finally:
        image.fp.seek(position)


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


def _to_8_bits(grey_YX: np.ndarray) -> np.ndarray:
    """Grey of up to 16 bits (int64) as uint8, by the bits that it uses: cameras and CT store 12 bits in 16.

    The bits are those that hold the largest value, an even number from 8 on; a picture that uses few of its bits on
    purpose is brightened, where it would else be black. (Pillow's own conversion clips at 255.)
    """
    grey_YX = np.clip(grey_YX, 0, 65535)
    bits = max(8, int(grey_YX.max(initial=0)).bit_length())
    most = 2 ** (bits + bits % 2) - 1
    return ((grey_YX * 255 + most // 2) // most).astype(np.uint8)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP:
        image = Image.fromarray(_to_8_bits(np.asarray(image).astype(np.int64)))
    elif image.has_transparency_data or image.mode == "La":
        # "La" and "RGBa" (colour multiplied by alpha) convert only to their own kind.
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _pad(image: Image.Image, size: int, colour: tuple[int, int, int], *, exact: bool) -> np.ndarray:
    """Resizes the padded square without building it: the padding is added after the rows are short."""
    width, height = image.size
    side = max(width, height)
    pixels_YXC = _centred(np.asarray(image), (height, side), colour)
    pixels_YXC = _centred(_resized(pixels_YXC, (height, size), exact=exact), (side, size), colour)
    return _resized(pixels_YXC, (size, size), exact=exact)


def _centred(pixels_YXC: np.ndarray, shape: tuple[int, int], colour: tuple[int, int, int]) -> np.ndarray:
    if pixels_YXC.shape[:2] == shape:
        return pixels_YXC
    top, left = ((have - want) // 2 for have, want in zip(shape, pixels_YXC.shape, strict=False))
    height, width = pixels_YXC.shape[:2]
    canvas = np.empty((*shape, 3), np.uint8)
    canvas[:] = np.full((shape[1], 3), colour, np.uint8)  # rows are quicker to copy than colours
    canvas[top : top + height, left : left + width] = pixels_YXC
    return canvas


def _resized(pixels_YXC: np.ndarray, shape: tuple[int, int], *, exact: bool) -> np.ndarray:
    """Resizes along one axis; one call for both would do rows first, and clip other values in between."""
    height, width = pixels_YXC.shape[:2]
    if exact or simd is None or not 1 < max(height / shape[0], width / shape[1]) <= _SIMD_SHRINKS:
        resized = Image.fromarray(pixels_YXC).resize(shape[::-1], Image.Resampling.BICUBIC)
        return np.asarray(resized)
    source = simd.ImageData(width, height, simd.PixelType.U8x3, pixels_YXC.tobytes())
    target = simd.ImageData(shape[1], shape[0], simd.PixelType.U8x3)
    bicubic = simd.ResizeAlg.convolution(simd.FilterType.catmull_rom)
    simd.Resizer().resize(source, target, simd.ResizeOptions(resize_alg=bicubic))
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(*shape, 3)


def _crop(image: Image.Image, size: int) -> np.ndarray:
    width, height = image.size
    short, long = min(width, height), max(width, height)
    new_long = int(size * long / short)
    new_width, new_height = (size, new_long) if width <= height else (new_long, size)
    image = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    return np.ascontiguousarray(np.asarray(image)[top : top + size, left : left + size])


def _squeeze(image: Image.Image, size: int) -> np.ndarray:
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def _image_error(source: str | bytes, origin: str, error: Exception) -> RecordError:
    """Describes in a line what Pillow's decoders report in a dozen exception types."""
    name = f"of {len(source):,} bytes" if isinstance(source, bytes) else repr(source)[1:-1]
    name = name if len(name) <= 300 else f"{name[:200]}...{name[-80:]}"
    where = f"{origin}: " if origin else ""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) and isinstance(source, str):
        folder = Path(source).parent
        hint = "" if folder.is_dir() else f"; the folder {repr(str(folder))[1:-1]} does not exist either"
        return RecordError(
            f"{where}image {name} is missing{hint}; check its path and data.image_folder", origin, "image_missing"
        )
    reason = error.reason if isinstance(error, _UnusableError) else "image_broken"
    if isinstance(error, Image.DecompressionBombError):  # of a part, such as a frame, that is larger than the image
        reason = "image_too_large"
    if reason == "image_too_large":
        return RecordError(f"{where}image {name} is too large ({error}); make it smaller", origin, reason)
    return RecordError(
        f"{where}image {name} cannot be decoded ({str(error) or type(error).__name__}); "
        "replace the file or remove the record",
        origin,
        reason,
    )
