"""Pictures of a run. What is sent is told from its first bytes, never from its name; SVG is a program, and not sent."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import FileResponse, Response

from jaxvlm.web.problem import Problem

_FOLDERS = ("", "evaluation/*/", "evaluations/", "nonfinite/*/")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")


def list_pictures(run: Path) -> list[str]:
    """Paths, relative to the run's folder, of the pictures that a page may ask for."""
    found = (path for folder in _FOLDERS for path in run.glob(f"{folder}*") if path.suffix.lower() in _SUFFIXES)
    root = run.resolve()
    return sorted(
        str(path.relative_to(run)) for path in found if path.resolve().is_relative_to(root) and path.is_file()
    )


def picture_type(start: bytes) -> str | None:
    """The media type of a picture from its first 16 bytes; None for anything that is not PNG, JPEG, GIF or WebP."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if start[:4] == b"RIFF" and start[8:12] == b"WEBP" else None


def picture_reply(path: Path) -> Response:
    """A picture's file.

    Raises:
      Problem: 404: it is no picture.
    """
    try:
        with path.open("rb") as file:
            kind = picture_type(file.read(16))
    except OSError:
        kind = None
    if kind is None:
        raise Problem(404, "no_picture", f"{path.name} is no PNG, JPEG, GIF or WebP picture")
    return FileResponse(path, media_type=kind)
