"""Small real videos, made on the spot: the brightness of a frame is its number, its corner at the top left is red."""

import io
import tempfile
from fractions import Fraction

import av
import numpy as np

STEP = 16  # levels between the brightness of a frame and that of the next


def frame(number, height=48, width=64):
    pixels = np.full((height, width, 3), 40 + STEP * (number % 10), np.uint8)
    pixels[: height // 4, : width // 4] = 250, 20, 20
    return pixels


def number_of(pixels):
    """The number of a frame, from 0 to 9, and which corner is red: (top or bottom, left or right)."""
    height, width = pixels.shape[:2]
    middle = pixels[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8].mean()
    corners = {
        (vertical, horizontal): pixels[y, x].astype(int)
        for vertical, y in (("top", 4), ("bottom", -5))
        for horizontal, x in (("left", 4), ("right", -5))
    }
    red = max(corners, key=lambda corner: corners[corner][0] - corners[corner][1])
    return round((float(middle) - 40) / STEP), red


def video(
    count=10, fps=5, height=48, width=64, *, container="mp4", codec="mpeg4", turned=0, pixel_format="", options=None
):
    """The bytes of a video file; `turned`: degrees, counterclockwise, by which a player turns it."""
    # A file, since "faststart" reads what it has written.
    with (
        tempfile.NamedTemporaryFile() as file,
        av.open(file.name, "w", format=container, options=options or {}) as made,
    ):
        stream = made.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height = width, height
        stream.pix_fmt = pixel_format or {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        if turned:
            stream.set_display_rotation(turned)
        for number in range(count):
            made.mux(stream.encode(av.VideoFrame.from_ndarray(frame(number, height, width), format="rgb24")))
        made.mux(stream.encode(None))
        made.close()
        return file.read()


def audio():
    """The bytes of an MP4 without pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as made:
        stream = made.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        made.mux(stream.encode(sound))
        made.mux(stream.encode(None))
    return file.getvalue()
