"""Images that people and attackers send."""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.serving.fake import ONE_PIXEL


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def data_url(content, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png_header(width, height, *, more=b""):
    """A PNG that claims a size and has no such pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8))
DEEP = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
PNG, JPEG = encoded(PHOTO), encoded(PHOTO, "JPEG")
DATA_URL = data_url(PNG)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
TURNED = Image.Exif()
TURNED[0x0112] = 6

# name -> (file, what its error says; None: it is answered)
HOSTILE = {
    "one pixel": (encoded(Image.new("RGB", (1, 1))), None),
    "1 x 10,000": (encoded(Image.new("RGB", (1, 10_000))), None),
    "CMYK": (encoded(PHOTO.convert("CMYK"), "JPEG"), None),
    "16 bits": (encoded(DEEP), None),
    "1 bit": (encoded(PHOTO.convert("1")), None),
    "palette with transparency": (encoded(PHOTO.convert("P"), transparency=3), None),
    "RGBA": (encoded(PHOTO.convert("RGBA")), None),
    "animated GIF": (encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(9)] * 3), None),
    "animated WebP": (encoded(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(9)]), None),
    "turned by EXIF": (encoded(PHOTO, "JPEG", exif=TURNED), None),
    "progressive": (encoded(PHOTO, "JPEG", progressive=True), None),
    "WebP": (encoded(PHOTO, "WEBP"), None),
    "BMP": (encoded(PHOTO, "BMP"), None),
    "TIFF": (encoded(PHOTO, "TIFF"), None),
    "AVIF": (encoded(PHOTO, "AVIF"), None),
    "text after the end": (PNG + b"<?php system($_GET[0]); ?>", None),
    "truncated PNG": (PNG[:-100], "truncated|decoded|broken|Error"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], "truncated|decoded|broken|Error"),
    "header alone": (PNG[:33], "."),
    "no pixels": (png_header(0, 0), "."),
    "bomb": (png_header(60_000, 60_000), "60000 x 60000 pixels"),
    "bomb below the decoder's limit": (png_header(10_000, 10_000), "10000 x 10000 pixels"),
    "SVG": (SVG, "no image"),
    "HTML": (b"<!doctype html><script>alert(1)</script>", "no image"),
    "ZIP": (b"PK\x03\x04" + b"\0" * 100, "no image"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
    "ICO": (b"\0\0\1\0\1\0" + b"\0" * 50, "no image"),
    "PSD": (b"8BPS\0\1" + b"\0" * 50, "no image"),
    "floating-point TIFF": (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
    "broken in the middle": (ONE_PIXEL, "cannot be decoded"),
}
