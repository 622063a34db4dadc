"""Images of a record: the keys they are under, and their forms (path, bytes, base64, data: URL); the rule of paths."""

from __future__ import annotations

import base64
import binascii
import os
import re
import urllib.parse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxvlm.data.media.images import starts_like_an_image
from jaxvlm.data.sources.values import Problems, short
from jaxvlm.errors import UserError

# Keys and columns under which data sets have images or videos; the others count only without one of the first two.
IMAGE_KEYS = (
    *("image", "images"),
    *("img", "imgs", "picture", "pictures", "image_path", "image_paths", "img_path", "img_paths", "image_file"),
    *("image_files", "image_url", "image_urls", "image_bytes", "image_base64", "image_base64_str"),
)
VIDEO_KEYS = ("video", "videos", "video_path", "video_paths", "video_file", "video_files")
MEDIA_KEYS = {"image": IMAGE_KEYS, "video": VIDEO_KEYS}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_DATA_URL = re.compile(r"data:(?P<type>[^,;]*)(?P<options>[^,]*),(?P<data>.*)", re.DOTALL)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]{64,}={0,2}\s*")
SURROGATES = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class ImageRule:
    """What image paths are relative to, and whether they may lead out of it."""

    folder: Path
    allow_outside: bool = False

    def resolve(self, image: str, problems: Problems, noun: str = "image") -> str | bytes:
        """The path of an image, or its bytes if the text contains them.

        Never looks at the disk, so symbolic links may lead anywhere.

        Args:
          noun: "image" or "video", what it is the file of.
        """
        if image.startswith("data:") or (noun == "image" and _is_base64(image)):
            return _decoded(image, problems, noun)
        if _URL.match(image):
            problems.append(
                (
                    f"{noun}_url",
                    f"{noun} {short(image)} is a URL, and no URL is fetched while training; download the {noun} and "
                    "give its path",
                )
            )
        elif SURROGATES.search(image):
            problems.append(("invalid_unicode", f"{noun} {short(image)} holds half of a surrogate pair, no character"))
        elif "\0" in image:
            problems.append((f"{noun}_path", f"{noun} {short(image)} holds a NUL character, which no path can"))
        elif not self.allow_outside and not self._is_inside(image):
            problems.append(
                (
                    f"{noun}_outside",
                    f"{noun} {short(image)} leads out of the image folder {self.folder}; move the image there, set "
                    "data.image_folder to a folder that holds all images, or set data.allow_outside = True",
                )
            )
        return str(self.folder / image)  # an absolute path stays as it is

    def _is_inside(self, image: str) -> bool:
        folder = os.path.abspath(self.folder)
        return os.path.abspath(os.path.join(folder, image)).startswith(folder.rstrip(os.sep) + os.sep)


def find_key(item: Mapping[str, Any], noun: str, problems: Problems) -> str | None:
    """The one key of an item under which it has images, or videos; None if it has none.

    Args:
      noun: "image" or "video".
    """
    found = _candidates({key for key in MEDIA_KEYS[noun] if not is_empty(item.get(key))}, noun)
    if len(found) > 1:
        names = " and ".join(f'"{key}"' for key in found)
        problems.append((f"several_{noun}_keys", f"it has {noun}s under {names}; keep them under one"))
        return None
    return found[0] if found else None


def find_column(columns: Iterable[str], noun: str, where: str, remedy: str) -> str | None:
    """The one column of a table that has images, or videos; None if it has none.

    Raises:
      UserError: several columns have one of the names; `where` names the table, `remedy` the way out.
    """
    found = _candidates(set(columns), noun)
    if len(found) > 1:
        raise UserError(f"{where}: its columns {', '.join(found)} all have a name of {noun}s; {remedy}")
    return found[0] if found else None


def _candidates(names: set[str], noun: str) -> list[str]:
    first = [key for key in (noun, f"{noun}s") if key in names]
    return first or [key for key in MEDIA_KEYS[noun] if key in names]


def is_empty(value: Any) -> bool:
    """Whether a value of a record means that there is none: null, "", or an empty list or object."""
    if isinstance(value, list):
        return all(is_empty(element) for element in value)
    return value is None or (isinstance(value, (str, dict)) and not value)


def read_images(item: Mapping[str, Any], key: str, problems: Problems) -> list[str | bytes]:
    """The images under a key: paths, texts or bytes as they are."""
    images = item.get(key)
    if is_empty(images):
        return []
    read = _data_url if key.startswith("image_base64") else one_image
    found = [read(image) for image in (images if isinstance(images, list) else [images])]
    given = [image for image in found if image is not None]
    if len(given) < len(found):
        expected = 'a path, the bytes of an image file, an object of "bytes" and "path", or a list of these'
        problems.append(("wrong_type", f'"{key}" is {expected}, found {short(images)}'))
        return []
    return given


def one_image(image: Any) -> str | bytes | None:
    """A path, a text or bytes; None if the value is none of these."""
    if isinstance(image, dict):  # how `datasets` stores an image, and OpenAI's files a URL
        if image.get("base64"):
            return _data_url(image["base64"])
        image = next((image[key] for key in ("bytes", "path", "url") if image.get(key) is not None), None)
    return image if isinstance(image, (str, bytes)) and image else None


def part_image(part: Mapping[str, Any]) -> str | bytes | None:
    """The image in a part of a message, in the forms of OpenAI, Anthropic and transformers; None: it has none."""
    for key in ("image_url", "image", "path", "url", "bytes"):
        if not is_empty(part.get(key)):
            return one_image(part[key])
    if not is_empty(part.get("base64")):
        return _data_url(part["base64"])
    source = part.get("source")
    if isinstance(source, dict):
        return one_image({"base64": source.get("data"), "url": source.get("url")})
    return None


def _data_url(data: Any) -> str | None:
    """A value that its key calls base64, as a data: URL."""
    if not isinstance(data, str) or not data:
        return None
    return data if data.startswith("data:") else f"data:;base64,{data}"


def _is_base64(text: str) -> bool:
    """Whether a text is an image file in base64: no path has only these letters and the first bytes of an image."""
    if not _BASE64.fullmatch(text):
        return False
    try:
        return starts_like_an_image(base64.b64decode("".join(text[:64].split())[:32]))
    except binascii.Error:
        return False


def _decoded(text: str, problems: Problems, noun: str) -> bytes:
    """The bytes of a data: URL or of base64."""
    kind, data, is_base64 = "base64", text, True
    if text.startswith("data:"):
        kind, matched = "base64 or a data: URL", _DATA_URL.fullmatch(text)
        data = matched["data"] if matched else ""
        is_base64 = matched is not None and ";base64" in matched["options"]
    try:
        found = (
            base64.b64decode("".join(data.split()), validate=True) if is_base64 else urllib.parse.unquote_to_bytes(data)
        )
    except (binascii.Error, ValueError) as error:
        problems.append((f"{noun}_base64", f"{noun} {short(text)} is {kind} that cannot be decoded ({error})"))
        return b""
    if noun == "image" and not starts_like_an_image(found):
        problems.append(("image_base64", f"image {short(text)} is {kind}, and its bytes are not those of an image"))
    return found
