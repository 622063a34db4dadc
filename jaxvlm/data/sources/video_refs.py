"""Videos of a record: their forms (a file, or a list of frame files) and the rate of lists."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from jaxvlm.data.media.images import starts_like_an_image
from jaxvlm.data.sources.image_refs import ImageRule, is_empty, one_image
from jaxvlm.data.sources.values import Problems, kind, short
from jaxvlm.media import Video

FPS_KEYS = ("fps", "video_fps", "sample_fps")  # of a record or a part: frames a second of its lists of frames
# Files of one picture each: a list of these is a list of frames. A GIF may be a video.
_STILLS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm", ".pbm"}
_EXPECTED = 'a path, the bytes of a file, an object of "bytes" and "path", a list of frame files, or a list of these'


def read_videos(item: Mapping[str, Any], key: str, problems: Problems) -> list[Video]:
    """The videos under a key of a record; paths and texts as they are.

    A list of image files is one video, its frames; any other list has a video in each element.
    """
    value = item.get(key)
    if is_empty(value):
        return []
    values = value if isinstance(value, list) and not _is_list_of_frames(value) else [value]
    found = [_one_video(element) for element in values]
    sources = [source for source in found if source is not None]
    if len(sources) < len(found):
        problems.append(("wrong_type", f'"{key}" is {_EXPECTED}, found {short(value)}'))
        return []
    return _with_rates(sources, item, problems)


def part_video(part: Mapping[str, Any], place: str, problems: Problems) -> Video | None:
    """The video in a part of a message, where a list is one of frames; None: it has none."""
    key = next((key for key in ("video_url", "video", "path", "url", "bytes") if not is_empty(part.get(key))), None)
    if key is None:
        return None
    source = _one_video(part[key])
    if source is None:
        problems.append(("wrong_type", f'{place} "{key}" is {_EXPECTED}, found {short(part[key])}'))
        return None
    return next(iter(_with_rates([source], part, problems)), None)


def unread_of_part(part: Mapping[str, Any]) -> list[str]:
    """What is not read of the part of a video, such as the limits that Qwen's own programs take from it."""
    read = {"type", "text", "video", "video_url", "path", "url", "bytes"}
    read |= set(FPS_KEYS) if any(isinstance(part.get(key), list) for key in read) else set()  # else they choose frames
    return [f"key {short(key)} of a video" for key in part if key not in read and not is_empty(part[key])]


def resolve_video(video: Video, rule: ImageRule, problems: Problems) -> Video:
    """The video with the paths of its files."""
    if isinstance(video.source, tuple):
        frames = tuple(rule.resolve(f, problems) if isinstance(f, str) else f for f in video.source)
        return Video(frames, video.fps)
    return Video(rule.resolve(video.source, problems, "video")) if isinstance(video.source, str) else video


def rate_key(item: Mapping[str, Any], videos: Sequence[Video]) -> str | None:
    """The key under which a record names the rate of its lists of frames; None: it has none, or no list."""
    if not any(video.is_list for video in videos):
        return None
    return next((key for key in FPS_KEYS if not is_empty(item.get(key))), None)


def _one_video(value: Any) -> str | bytes | tuple[str | bytes, ...] | None:
    """A file or the files of frames; None if the value is neither."""
    if not isinstance(value, list):
        return one_image(value)  # has the same forms
    frames = [one_image(frame) for frame in value]
    given = tuple(frame for frame in frames if frame is not None)
    return given if given and len(given) == len(frames) else None


def _is_list_of_frames(values: list[Any]) -> bool:
    return all(_is_still(one_image(value)) for value in values)


def _is_still(source: str | bytes | None) -> bool:
    if isinstance(source, bytes):
        is_avi = source[:4] == b"RIFF" and source[8:12] == b"AVI "  # WebP begins with RIFF, too
        return starts_like_an_image(source) and not source.startswith(b"GIF8") and not is_avi
    if source is None or source.startswith("data:"):
        return source is not None and source.startswith("data:image/") and not source.startswith("data:image/gif")
    return PurePath(source).suffix.lower() in _STILLS


def _with_rates(
    sources: Sequence[str | bytes | tuple[str | bytes, ...]], item: Mapping[str, Any], problems: Problems
) -> list[Video]:
    """Videos of these sources; lists of frames with the rate that the record or the part names."""
    videos = [Video(source) for source in sources]
    key = rate_key(item, videos)
    if key is None:
        return videos
    rates = item[key] if isinstance(item[key], list) else [item[key]] * len(sources)
    if len(rates) != len(sources) or not all(map(_is_rate, rates)):
        expected = f"frames a second, a number above 0 or one for each of the {len(sources)} videos"
        problems.append(("wrong_type", f'"{key}" is {expected}, found {kind(item[key])}'))
        return videos
    pairs = zip(videos, rates, strict=True)
    return [Video(video.source, float(rate)) if video.is_list else video for video, rate in pairs]


def _is_rate(rate: Any) -> bool:
    return isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate < math.inf
