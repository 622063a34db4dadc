"""Images in cells of TSV files: base64, a list of them, or the index of another row that has the image."""

from __future__ import annotations

import ast
import base64
import binascii
from collections.abc import Sequence

from jaxvlm.evaluation.benchmarks.files import Row, RowError

_LONGEST_INDEX = 64  # characters; a longer cell is an image. The limit is VLMEvalKit's
_MISSING = ("", "nan", "NaN")


def cell(row: Row, *keys: str) -> str:
    """The text of the first of the columns that has one; "" if none does.

    "nan" stands for nothing too, as tools that write missing values with pandas leave it behind.
    """
    for key in keys:
        value = row.get(key, "")
        if value == value and str(value).strip() not in _MISSING:  # a NaN does not equal itself
            return str(value)
    return ""


class TsvImages:
    """Finds the images of rows; rows that share an image share its bytes."""

    def __init__(self, rows: Sequence[Row]):
        """Reads the columns "index" and "image" of all rows."""
        self._cells = {str(row.get("index", "")): cell(row, "image") for row in rows}
        self._decoded: dict[str, tuple[bytes, ...]] = {}

    def key(self, row: Row) -> str:
        """The index of the row that has the image of `row`; raises `RowError`."""
        index = str(row.get("index", ""))
        image = self._cells.get(index, "")
        if not image or len(image) > _LONGEST_INDEX:
            return index
        target = self._cells.get(image)
        if target is None:
            raise RowError(f'"image" is base64 or the index of a row, found {image!r}, which is no row')
        if len(target) <= _LONGEST_INDEX:
            raise RowError(f'"image" is the index {image}, whose row has no image itself')
        return image

    def of(self, row: Row) -> tuple[bytes, ...]:
        """The images of a row, () if it has none; raises `RowError`."""
        key = self.key(row)
        if key not in self._decoded:
            self._decoded[key] = tuple(_decoded(text) for text in _listed(self._cells[key]))
        return self._decoded[key]

    def one(self, row: Row) -> bytes:
        """The image of a row that has just one; raises `RowError`."""
        images = self.of(row)
        if len(images) != 1:
            raise RowError(f'"image" is one image, found {len(images)}')
        return images[0]


def _listed(text: str) -> list[str]:
    if not text.startswith("["):
        return [text] if text else []
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise RowError('"image" begins as a list of base64 texts and is none')
    return value


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(f'"image" is not base64 ({error})') from error
