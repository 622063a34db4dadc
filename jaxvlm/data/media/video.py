"""Reads videos: their size from the header, and single frames as upright RGB, uint8.

Files are read with PyAV (the extra `video`), lists of frame files with Pillow.

Axis letters:
  N frames   Y, X pixels   C colour channels
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from jaxvlm.data.media import images
from jaxvlm.data.records import RecordError
from jaxvlm.errors import UserError, missing_extra
from jaxvlm.media import Size, Video, describe

VIDEO_REASONS = ("video_missing", "video_broken", "video_too_large")  # of a `RecordError`
MAX_FILE_BYTES = 2**33
MAX_FRAMES = 200_000
MAX_SECONDS = 6 * 3600
# Demuxers that read one file and nothing that it points to, unlike those of playlists (HLS, concat).
_FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,gif,asf,ogg"
_FORMATS_IN_WORDS = "MP4, MOV, Matroska, WebM, AVI, MPEG, FLV, GIF, WMV or Ogg"
# A decoder may give fewer frames than the container counts: the last frame then stands for the missing ones at the end,
# if they are few. More means that the file is corrupt.
_MISSING_FRAMES, _MISSING_SHARE = 2, 0.05
_MAX_DENOMINATOR, _MAX_FPS = 10**6, 2000  # of `Size.rate` and `per`, 32 bits each in the index
# Times of packets can be rounded to milliseconds, so the header's rate is better, unless it is this far from them.
_RATE_SHARE = 0.02
# A file whose packets end before this share of its duration, less half a second, is truncated.
_WHOLE_SHARE, _WHOLE_SECONDS = 0.9, 0.5


class _UnusableError(Exception):
    """A fault of a video, and the reason under which the ledger counts it."""

    def __init__(self, finding: str, reason: str = "video_broken"):
        super().__init__(finding)
        self.reason = reason


def read_video_size(video: Video, origin: str = "") -> Size:
    """The size of a video as displayed, from the header of its file and its first frame.

    Packets are counted where the header has no count of frames. Of a list, the header of every frame file is read.
    Pixels are taken as square.

    Raises:
      RecordError: the video is missing, no video, truncated or too large, or frames of a list differ in size.
      UserError: PyAV is not installed.
    """
    with _errors(video, origin):
        if isinstance(video.source, tuple):
            return _size_of_list(video, origin)
        with _opened(video.source, origin) as (container, stream):
            counted = _counted_by_header(stream, _num_bytes(video.source))
            frame = next(_decoded(container, stream, origin), None)
            if frame is None:
                raise _UnusableError("no frame of it can be decoded")
            height, width = _upright(np.empty((frame.height, frame.width), bool), _matrix(frame)).shape
            header_rate = stream.average_rate
        if counted is None:
            with _opened(video.source, origin) as (container, stream):
                counted = _counted_by_packets(container, stream)
        frames, seconds = counted
        _check_length(frames, seconds)
        measured = Fraction(frames) / Fraction(seconds or 1e-3)
        is_near = header_rate and abs(header_rate / measured - 1) < _RATE_SHARE
        return Size(height, width, frames, *_rate(header_rate if is_near else measured))


def read_frames(
    video: Video,
    indices: Sequence[int] | np.ndarray,
    origin: str = "",
    *,
    change: Callable[[np.ndarray], np.ndarray] = lambda pixels_YXC: pixels_YXC,
) -> np.ndarray:
    """Decodes frames of a video: the display matrix applied, transparency over white.

    A file is decoded from its start to the last frame that is wanted; only wanted frames become RGB.

    Args:
      indices: which frames, from 0, ascending; a number may occur several times.
      origin: the record's place, for messages.
      change: applied to each frame, uint8[Y, X, 3], as soon as it is decoded, such as a resize: the frames of a long
        video would not fit into memory as they are.

    Returns:
      uint8[N, Y, X, 3], RGB.

    Raises:
      RecordError: the video is missing or corrupt, or ends early by more than 1 frame in 20.
      UserError: PyAV is not installed.
      ValueError: no indices, not ascending, or a list of frames has fewer.
    """
    wanted = [int(index) for index in indices]
    if not wanted or wanted[0] < 0 or sorted(wanted) != wanted:
        raise ValueError(f"indices must be one or more ascending numbers of frames from 0, found {wanted[:10]}")
    if missing := set(wanted) - set(_numbers(video)) if isinstance(video.source, tuple) else set():
        raise ValueError(f"frame {min(missing)} is wanted of a list of {len(video.source)} that lacks it")
    distinct = sorted(set(wanted))
    found = {index: change(frame) for index, frame in zip(distinct, _frames(video, distinct, origin), strict=True)}
    return np.stack([found[index] for index in wanted])


def read_still(video: Video, origin: str = "") -> bytes:
    """The middle frame of a video as a PNG file, for pages that show one picture; raises as `read_frames`."""
    numbers = _numbers(video) if video.is_list else range(read_video_size(video, origin).frames)
    (pixels_YXC,) = read_frames(video, [numbers[len(numbers) // 2]], origin)
    file = io.BytesIO()
    Image.fromarray(pixels_YXC).save(file, "PNG")
    return file.getvalue()


@functools.cache
def _import_av() -> Any:
    import av
    import av.logging

    av.logging.set_level(None)  # findings about a file are errors of its record, not lines on the terminal
    return av


@contextlib.contextmanager
def _errors(video: Video, origin: str) -> Iterator[None]:
    """Turns what decoders raise, in a dozen types, into a `RecordError` of one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _video_error(video, origin, error) from error


@contextlib.contextmanager
def _opened(source: str | bytes, origin: str) -> Iterator[tuple[Any, Any]]:
    """Opens a file: its container and its video stream; decodes nothing."""
    try:
        av = _import_av()
    except ModuleNotFoundError as error:
        raise missing_extra(f"{origin}: a video" if origin else "a video", "av", "video") from error
    _check_file(source)
    with _file(source) as file:
        try:
            options = {"format_whitelist": _FORMATS, "protocol_whitelist": ""}
            container = av.open(file, "r", options=options, metadata_errors="ignore")
        except (av.error.InvalidDataError, av.error.ArgumentError) as error:
            raise _UnusableError(f"no video: it is not {_FORMATS_IN_WORDS}, or it is truncated") from error
        with container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
                raise _UnusableError("no video: it has no stream of pictures")
            _check_pixels(stream.codec_context.width, stream.codec_context.height)
            yield container, stream


@contextlib.contextmanager
def _file(source: str | bytes) -> Iterator[IO[bytes]]:
    with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
        yield file


def _num_bytes(source: str | bytes) -> int:
    return len(source) if isinstance(source, bytes) else os.stat(source).st_size


def _check_file(source: str | bytes) -> None:
    if isinstance(source, str) and not stat.S_ISREG(mode := os.stat(source).st_mode):
        raise _UnusableError("it is a folder, not a file" if stat.S_ISDIR(mode) else "it is no regular file")
    count = _num_bytes(source)
    if not count:
        raise _UnusableError("no video: it is empty")
    if count > MAX_FILE_BYTES:
        raise _UnusableError(f"a file of {count:,} bytes, the limit is {MAX_FILE_BYTES:,}", "video_too_large")


def _check_pixels(width: int, height: int) -> None:
    if width * height > images.MAX_PIXELS:
        finding = f"a frame of {width} x {height} pixels, the limit is {images.MAX_PIXELS:,}"
        raise _UnusableError(finding, "video_too_large")


def _check_length(frames: int, seconds: float) -> None:
    if frames > MAX_FRAMES:
        raise _UnusableError(f"{frames:,} frames or more, the limit is {MAX_FRAMES:,}", "video_too_large")
    if seconds > MAX_SECONDS:
        raise _UnusableError(f"{seconds:,.0f} seconds, the limit is {MAX_SECONDS:,}", "video_too_large")


def _counted_by_header(stream: Any, num_bytes: int) -> tuple[int, float] | None:
    """Frames and seconds, if the file has an index of all its frames (MP4, MOV, AVI); None: it has none."""
    if not stream.frames or not stream.duration:
        return None
    _check_length(stream.frames, float(stream.duration * stream.time_base))
    entries = stream.index_entries
    if len(entries) < stream.frames:
        return None
    if max(entry.pos + entry.size for entry in entries) > num_bytes:
        raise _UnusableError("it is truncated: its index points beyond the end of the file")
    shown = sum(not entry.is_discard for entry in entries)  # an edit list can cut frames that are stored
    return max(1, shown), float(stream.duration * stream.time_base)


def _counted_by_packets(container: Any, stream: Any) -> tuple[int, float]:
    """Frames and seconds from all packets of a file, which takes one pass over it without decoding."""
    times: list[float] = []
    count, end = 0, 0.0
    for packet in container.demux():
        if not packet.size:
            continue  # ends the stream
        at = packet.pts if packet.pts is not None else packet.dts
        end = max(end, float(((at or 0) + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index == stream.index:
            count += 1
            times += [] if at is None else [float(at * packet.time_base)]
            _check_length(count, 0.0)
    duration = (container.duration or 0) / 1e6  # in microseconds; of the longest stream
    if end < _WHOLE_SHARE * duration - _WHOLE_SECONDS:
        raise _UnusableError(f"it is truncated: {end:.1f} of {duration:.1f} seconds are there")
    if not count:
        raise _UnusableError("it has no frames")
    span = max(times) - min(times) if times else 0.0
    if span:
        return count, span * count / (count - 1)  # from the first frame to the end of the last
    rate = stream.average_rate
    return count, count / float(rate) if rate else max(duration, 1e-3)


def _decoded(container: Any, stream: Any, origin: str) -> Iterator[Any]:
    """The frames of a stream in order of display."""
    stream.thread_type = "AUTO"  # frames on several cores
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except _import_av().error.InvalidDataError:
            continue  # as players do; `_frames_of_file` notices if many frames are lost
        yield from frames


def _frames(video: Video, wanted: Sequence[int], origin: str) -> Iterator[np.ndarray]:
    """uint8[Y, X, 3] for each of `wanted`, which ascend; all of one size."""
    shape = None
    with _errors(video, origin):
        source = video.source
        if isinstance(source, tuple):
            numbers = _numbers(video)
            frames = _frames_of_list(source, [numbers.index(number) for number in wanted], origin)
        else:
            frames = _frames_of_file(source, wanted, origin)
        for frame in frames:
            shape = shape or frame.shape
            _check_same(frame.shape, shape)
            yield frame


def _frames_of_file(source: str | bytes, wanted: Sequence[int], origin: str) -> Iterator[np.ndarray]:
    """uint8[Y, X, 3] for each of `wanted`, which ascend."""
    remaining, last, count = list(wanted), None, 0
    with _opened(source, origin) as (container, stream):
        for frame in _decoded(container, stream, origin):
            if remaining[0] == count:
                remaining.pop(0)
                yield _pixels(frame)
                if not remaining:
                    return
            last, count = frame, count + 1
        missing = remaining[-1] + 1 - count
        if last is None or missing > max(_MISSING_FRAMES, _MISSING_SHARE * (remaining[-1] + 1)):
            raise _UnusableError(f"it ends after {count:,} frames, and frame {remaining[-1]:,} is wanted")
        for _ in remaining:
            yield _pixels(last)


def _check_same(found: Sequence[int], first: Sequence[int]) -> None:
    if tuple(found[:2]) != tuple(first[:2]):
        raise _UnusableError(
            f"its frames differ in size: {found[1]} x {found[0]} pixels, the first {first[1]} x {first[0]}"
        )


def _pixels(frame: Any) -> np.ndarray:
    """A decoded frame as uint8[Y, X, 3], upright RGB."""
    _check_pixels(frame.width, frame.height)
    if any(component.is_alpha for component in frame.format.components) or frame.format.has_palette:
        image = Image.fromarray(frame.to_ndarray(format="rgba"))
        white = Image.new("RGBA", image.size, "white")
        pixels_YXC = np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    else:
        pixels_YXC = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(_upright(pixels_YXC, _matrix(frame)))


def _matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """The display matrix (a, b, c, d) of a frame, x' = a x + c y and y' = b x + d y; None: it has none."""
    data = frame.side_data.get(_import_av().sidedata.sidedata.Type.DISPLAYMATRIX)
    if data is None:
        return None
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    return a, b, c, d


def _upright(pixels: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """A view [Y, X, ...] with the quarter turns and mirrorings of a display matrix applied."""
    if matrix is None:
        return pixels
    a, b, c, d = matrix
    turned = abs(b) > abs(a)
    pixels = np.swapaxes(pixels, 0, 1) if turned else pixels
    along_x, along_y = (c, b) if turned else (a, d)
    pixels = pixels[:, ::-1] if along_x < 0 else pixels
    return pixels[::-1] if along_y < 0 else pixels


def _numbers(video: Video) -> Sequence[int]:
    """Which frames of its video a list has, ascending."""
    return video.numbers or range(len(video.source))


def _rate(fps: Fraction) -> tuple[int, int]:
    """`Size.rate` and `Size.per`."""
    found = min(fps, Fraction(_MAX_FPS)).limit_denominator(_MAX_DENOMINATOR)
    return (found.numerator, found.denominator) if found else (1, _MAX_DENOMINATOR)


def _size_of_list(video: Video, origin: str) -> Size:
    assert isinstance(video.source, tuple)
    if not video.source:
        raise _UnusableError("its list of frames is empty")
    count = _numbers(video)[-1] + 1
    _check_length(count, count / video.fps)
    first = None
    for number, frame in enumerate(video.source):
        with _errors_of_frame(number, origin) as place:
            size = images.read_size(frame, place)
        first = first or size
        _check_same(size, first)
    assert first is not None
    return Size(first.height, first.width, count, *_rate(Fraction(video.fps)))


def _frames_of_list(frames: tuple[str | bytes, ...], wanted: Sequence[int], origin: str) -> Iterator[np.ndarray]:
    for number in wanted:
        with _errors_of_frame(number, origin) as place:
            image = images.decode(frames[number], place)
        yield np.asarray(image)


@contextlib.contextmanager
def _errors_of_frame(number: int, origin: str) -> Iterator[str]:
    """Yields the place of a frame file, for messages; its faults are faults of the video."""
    try:
        yield f"{origin}: frame {number} of a video" if origin else f"frame {number} of a video"
    except RecordError as error:
        raise RecordError(str(error), origin, error.reason.replace("image_", "video_")) from error


def _video_error(video: Video, origin: str, error: Exception) -> RecordError:
    source = video.source
    name = f"of {len(source):,} bytes" if isinstance(source, bytes) else repr(describe(video))[1:-1]
    name = name if len(name) <= 300 else f"{name[:200]}...{name[-80:]}"
    where = f"{origin}: " if origin else ""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)) and isinstance(source, str):
        folder = Path(source).parent
        hint = "" if folder.is_dir() else f"; the folder {repr(str(folder))[1:-1]} does not exist either"
        message = f"{where}video {name} is missing{hint}; check its path and data.image_folder"
        return RecordError(message, origin, "video_missing")
    reason = error.reason if isinstance(error, _UnusableError) else "video_broken"
    if reason == "video_too_large":
        return RecordError(f"{where}video {name} is too large ({error}); make it smaller or shorter", origin, reason)
    finding = " ".join(str(error).split()) or type(error).__name__
    message = f"{where}video {name} cannot be decoded ({finding}); replace the file or remove the record"
    return RecordError(message, origin, reason)
