"""The bytes of images that requests name by URL, checked before anything is decoded."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
import stat
import urllib.parse
from pathlib import Path

from jaxvlm.data.media.images import read_size
from jaxvlm.data.records import RecordError
from jaxvlm.serving.fetch import FetchError, UrlError, fetch, parse
from jaxvlm.serving.requests import RequestError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)
_SPACE = re.compile(rb"[ \t\r\n]+")
_AS_STANDARD = bytes.maketrans(b"-_", b"+/")  # the alphabet of RFC 4648 for URLs


@dataclasses.dataclass(frozen=True)
class MediaRules:
    """Which URLs of images are read.

    Attributes:
      folder: files in it are read, after symbolic links are resolved; None: no files.
      hosts: of which http and https URLs are fetched, see `fetch.check_host`.
      max_bytes: of an image's file.
      max_pixels: of an image, by its header.
      seconds: for one fetch.
    """

    folder: Path | None = None
    hosts: frozenset[str] = frozenset()
    max_bytes: int = 2**26
    max_pixels: int = 2**26
    seconds: float = 10.0


def read_image(url: str, rules: MediaRules, param: str) -> bytes:
    """The file of an image: of a data: URL, of an allowed host, or in the allowed folder.

    Args:
      param: where the request has the URL, for messages.

    Raises:
      RequestError: "invalid_image_url" for a URL that is malformed or not allowed, "image_not_fetched" for a host that
        does not give it, "invalid_image" for a file that is no image or too large.
    """
    try:
        content = _content(url, rules)
    except UrlError as error:
        raise RequestError(f"{param}: {error}", "invalid_image_url", param) from error
    except FetchError as error:
        raise RequestError(f"{param}: the image was not fetched: {error}", "image_not_fetched", param) from error
    check_image(content, rules, param)
    return content


def check_image(content: bytes, rules: MediaRules, param: str) -> None:
    """Checks an image's file by its size, its header and its end.

    Raises:
      RequestError: "invalid_image".
    """
    if len(content) > rules.max_bytes:
        problem = f"the image has {len(content):,} bytes, the limit is {rules.max_bytes:,} (--max-body)"
        raise RequestError(f"{param}: {problem}", "invalid_image", param)
    try:
        size = read_size(content, param)
    except RecordError as error:
        raise RequestError(str(error), "invalid_image", param) from error
    if size.height * size.width > rules.max_pixels:
        problem = f"the image has {size.width} x {size.height} pixels, the limit is {rules.max_pixels:,} (--max-pixels)"
        raise RequestError(f"{param}: {problem}", "invalid_image", param)


def _content(url: str, rules: MediaRules) -> bytes:
    found = _SCHEME.match(url)
    scheme = found[1].lower() if found else ""
    if scheme == "data":
        return decode_data_url(url)
    if scheme in ("http", "https"):
        return fetch(parse(url, rules.hosts), rules.max_bytes, rules.seconds)
    if scheme in ("", "file"):
        return _read_file(url, scheme, rules)
    raise UrlError(f"the scheme {scheme[:20]}: is not read; send the image as a data: URL")


def decode_data_url(url: str) -> bytes:
    """The bytes of a data: URL (RFC 2397), of any media type or none: the file's own first bytes tell what it is.

    Base64 may lack its padding, have the alphabet for URLs, be escaped with percent signs, or be broken into lines.

    Raises:
      UrlError: it is malformed or empty.
    """
    head, comma, body = url.partition(",")
    if not comma:
        raise UrlError('the data: URL has no comma; write "data:image/png;base64," and then the file in base64')
    if not re.search(r";\s*base64\s*$", head, re.IGNORECASE):
        content = urllib.parse.unquote_to_bytes(body)
    else:
        try:
            packed = urllib.parse.unquote_to_bytes(body) if "%" in body else body.encode("ascii")
            packed = _SPACE.sub(b"", packed).translate(_AS_STANDARD).rstrip(b"=")
            content = base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
        except (binascii.Error, UnicodeEncodeError) as error:
            problem = "a letter beyond ASCII" if isinstance(error, UnicodeEncodeError) else str(error)
            raise UrlError(f"the data: URL is not base64: {problem}") from error
    if not content:
        raise UrlError("the data: URL is empty")
    return content


def _read_file(url: str, scheme: str, rules: MediaRules) -> bytes:
    if rules.folder is None:
        what = "file: URLs are" if scheme else "text without a scheme is"
        raise UrlError(
            f"{what} not read; send the image as a data: URL (data:image/png;base64,...), or start the server with "
            "--allow-media DIR for files in DIR"
        )
    name = url
    if scheme:
        parts = urllib.parse.urlsplit(url)
        if parts.netloc not in ("", "localhost"):
            raise UrlError(f"file: URLs name no other machine, found {parts.netloc[:100]!r}; write file:///PATH")
        name = urllib.parse.unquote(parts.path)
    try:
        path = (rules.folder / name).resolve()
        if not path.is_relative_to(rules.folder.resolve()):
            raise UrlError("the file is not inside the folder of --allow-media")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UrlError("it is no regular file")
        with path.open("rb") as file:
            return file.read(rules.max_bytes + 1)
    except (OSError, ValueError, RuntimeError) as error:  # missing, a NUL in the name, a loop of links
        raise UrlError(
            f"the file cannot be read: {getattr(error, 'strerror', None) or type(error).__name__}"
        ) from error
