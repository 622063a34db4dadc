"""Small pictures of images that are no files of their own: those within TSV and Parquet files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

from jaxvlm.data.media.images import decode
from jaxvlm.data.records import RecordError
from jaxvlm.evaluation.result import Result
from jaxvlm.evaluation.worst_page import worst
from jaxvlm.files import replace_bytes

MOST = 1000  # pictures of a result
_PIXELS = 512  # longest side


def write_pictures(result: Result, folder: Path) -> Mapping[bytes, str]:
    """Writes a JPEG of each image that is no file, of the worst answers first, at most `MOST`.

    Returns:
      image -> absolute path of its picture. Images that cannot be decoded have none.
    """
    items, written = result.task.items, dict[bytes, str]()
    first = [place for place, _ in worst(result, len(items))]
    for place in dict.fromkeys((*first, *range(len(items)))):
        for image in items[place].images:
            if not isinstance(image, bytes) or image in written:
                continue
            if len(written) == MOST:
                return written
            try:
                written[image] = _write(image, items[place].origin, folder)
            except RecordError:  # the answer was made elsewhere, or from another file
                continue
    return written


def _write(image: bytes, origin: str, folder: Path) -> str:
    picture = decode(image, origin)
    picture.thumbnail((_PIXELS, _PIXELS))
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=85)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.absolute() / f"{hashlib.sha256(image).hexdigest()[:20]}.jpg"
    replace_bytes(path, content.getvalue())
    return str(path)
