"""Image files that `inspect_data prepare` writes."""

from __future__ import annotations

import io

from PIL import Image

_JPEG_SIDE = 65500  # pixels, libjpeg's limit


def encode(image: Image.Image, jpeg: int) -> bytes:
    """A JPEG of quality `jpeg`; a PNG if that is 0, or if a side is longer than a JPEG can have."""
    kept = io.BytesIO()
    if jpeg and max(image.size) <= _JPEG_SIDE:
        image.save(kept, "JPEG", quality=jpeg, subsampling=0)
    else:
        image.save(kept, "PNG", compress_level=1)  # 6, the default: a tenth smaller, 4x slower
    return kept.getvalue()
