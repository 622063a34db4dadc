"""Video files: their sizes, their frames, and what is said of files that are none."""

import builtins
import io
import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from jaxvlm.data.media import video as video_module
from jaxvlm.data.media.sizes import MEDIA_REASONS, read_size
from jaxvlm.data.media.video import read_frames, read_still, read_video_size
from jaxvlm.data.records import RecordError
from jaxvlm.errors import UserError
from jaxvlm.media import Size, Video, describe
from tests import videos

CONTAINERS = [
    ("mp4", "mpeg4"),
    ("mp4", "libx264"),
    ("matroska", "mpeg4"),
    ("webm", "libvpx-vp9"),
    ("avi", "mpeg4"),
    ("mpegts", "libx264"),
    ("flv", "libx264"),
    ("asf", "mpeg4"),
    ("mov", "mjpeg"),
    ("gif", "gif"),
]
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


def numbers(video, indices):
    return [videos.number_of(pixels)[0] for pixels in read_frames(Video(video), indices)]


def refused(video, **arguments):
    with pytest.raises(RecordError) as caught:
        read_size(video, "f.json[3]", **arguments)
    assert caught.value.origin == "f.json[3]" and str(caught.value).startswith("f.json[3]: ")
    assert caught.value.reason in MEDIA_REASONS and "\n" not in str(caught.value)
    return caught.value.reason, str(caught.value)


@pytest.mark.parametrize("container, codec", CONTAINERS)
def test_the_size_and_the_frames_of_each_kind_of_file(container, codec, tmp_path, capfd):
    data = videos.video(10, 5, container=container, codec=codec)
    assert read_size(Video(data)) == Size(48, 64, 10, 5)
    assert numbers(data, range(10)) == list(range(10))
    assert numbers(data, [2, 5, 5, 8]) == [2, 5, 5, 8]
    path = tmp_path / "a.bin"  # the name says nothing
    path.write_bytes(data)
    assert read_size(Video(str(path))) == Size(48, 64, 10, 5)
    np.testing.assert_array_equal(read_frames(Video(str(path)), [7]), read_frames(Video(data), [7]))
    assert capfd.readouterr() == ("", "")


def test_frames_are_rgb():
    (pixels,) = read_frames(Video(videos.video()), [0])
    assert pixels.dtype == np.uint8 and pixels.shape == (48, 64, 3)
    assert np.abs(pixels[4, 4].astype(int) - [250, 20, 20]).max() < 40


def test_a_header_without_a_count_of_frames():
    data = videos.video(9, 4, options=FRAGMENTS)
    assert read_size(Video(data)) == Size(48, 64, 9, 4)
    assert numbers(data, [8]) == [8]


@pytest.mark.parametrize(
    "turned, corner",
    [(0, ("top", "left")), (90, ("bottom", "left")), (180, ("bottom", "right")), (270, ("top", "right"))],
)
def test_a_phones_video_is_turned(turned, corner):
    data = videos.video(3, turned=turned)
    height, width = (64, 48) if turned % 180 else (48, 64)
    assert read_size(Video(data))[:2] == (height, width)
    (pixels,) = read_frames(Video(data), [1])
    assert pixels.shape == (height, width, 3) and videos.number_of(pixels) == (1, corner)


def test_a_mirrored_matrix():
    pixels = np.arange(6).reshape(2, 3)
    assert video_module._upright(pixels, (-1, 0, 0, 1)).tolist() == [[2, 1, 0], [5, 4, 3]]
    assert video_module._upright(pixels, (0, 1, 1, 0)).tolist() == [[0, 3], [1, 4], [2, 5]]


def test_frames_are_changed_one_by_one():
    shapes = []

    def halved(pixels):
        shapes.append(pixels.shape)
        return pixels[::2, ::2]

    assert read_frames(Video(videos.video()), [0, 4, 4], change=halved).shape == (3, 24, 32, 3)
    assert shapes == [(48, 64, 3)] * 2


@pytest.mark.parametrize("indices", [[], [-1], [3, 2]])
def test_indices_that_are_our_own_mistake(indices):
    with pytest.raises(ValueError, match="ascending"):
        read_frames(Video(videos.video(3)), indices)


def test_transparent_pixels_are_white(tmp_path):
    shown = [Image.new("RGBA", (32, 32), (0, 0, 0, 0)), Image.new("RGBA", (32, 32), (0, 0, 255, 255))]
    shown[0].save(tmp_path / "a.gif", save_all=True, append_images=shown[1:], duration=500, disposal=2)
    video = Video(str(tmp_path / "a.gif"))
    assert read_size(video) == Size(32, 32, 2, 2)
    assert read_frames(video, [0, 1])[:, 9, 9].tolist() == [[255, 255, 255], [0, 0, 255]]


# --- lists of frames ------------------------------------------------------------------------------------------------


def frame_files(folder, count=4, shape=(48, 64)):
    paths = [str(folder / f"{number}.png") for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(videos.frame(number, *shape)).save(path)
    return tuple(paths)


def test_a_list_of_frames(tmp_path):
    paths = frame_files(tmp_path)
    assert read_size(Video(paths)) == Size(48, 64, 4, 2)
    assert read_size(Video(paths, fps=0.5)) == Size(48, 64, 4, 1, 2)
    frames = read_frames(Video(paths), [1, 3, 3])
    assert [videos.number_of(pixels)[0] for pixels in frames] == [1, 3, 3]
    assert describe(Video(paths)) == f"4 frames at 2 a second, the first {paths[0]}"
    assert Image.open(io.BytesIO(read_still(Video(paths)))).size == (64, 48)
    with pytest.raises(ValueError, match="frame 4 is wanted of a list of 4"):
        read_frames(Video(paths), [4])


def test_a_list_of_some_frames_of_a_video(tmp_path):
    """Frames 0, 3, 7 and 9 of ten at 29.97 a second."""
    video = Video(frame_files(tmp_path), 30000 / 1001, (0, 3, 7, 9))
    assert read_size(video) == Size(48, 64, 10, 30000, 1001)
    assert [videos.number_of(pixels)[0] for pixels in read_frames(video, [0, 7, 9])] == [0, 2, 3]
    assert Image.open(io.BytesIO(read_still(video))).size == (64, 48)
    with pytest.raises(ValueError, match="frame 1 is wanted of a list of 4 that lacks it"):
        read_frames(video, [0, 1])


@pytest.mark.parametrize("fps", [1e300, 1e-4])
def test_rates_that_32_bits_cannot_hold(fps, tmp_path):
    size = read_size(Video(frame_files(tmp_path, 2), fps))
    assert size.is_video and max(size) < 2**31 and size.fps == min(fps, 2000)


@pytest.mark.parametrize(("rate", "per"), [(30, 1), (30000, 1001), (24000, 1001), (25, 2)])
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_the_rate_of_a_file_is_exact(rate, per, container):
    """Also where packets have times in milliseconds."""
    data = videos.video(7, Fraction(rate, per), container=container)
    assert read_size(Video(data)) == Size(48, 64, 7, rate, per)


def test_a_list_of_frames_needs_no_package(tmp_path, monkeypatch):
    monkeypatch.setattr(video_module, "_import_av", lambda: pytest.fail("PyAV was imported"))
    assert read_size(Video(frame_files(tmp_path))).frames == 4


def test_a_frame_that_is_wrong(tmp_path):
    paths = frame_files(tmp_path)
    reason, message = refused(Video((*paths, str(tmp_path / "none.png"))))
    assert reason == "video_missing" and "frame 4 of a video: image" in message
    (tmp_path / "2.png").write_bytes(b"no picture")
    reason, message = refused(Video(paths))
    assert reason == "video_broken" and "frame 2 of a video" in message
    frame_files(tmp_path, 1, (40, 64))
    assert "differ in size: 64 x 48 pixels, the first 64 x 40" in refused(Video(paths))[1]
    assert "empty" in refused(Video(()))[1]


# --- files that are refused -----------------------------------------------------------------------------------------


def test_files_that_are_no_videos(tmp_path, capfd, caplog):
    Image.new("RGB", (9, 7)).save(tmp_path / "a.png")
    for data, words in [
        (b"", "it is empty"),
        (b"text", "no video"),
        (b"#EXTM3U\nhttp://127.0.0.1/a.ts\n", "no video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no video"),
        ((tmp_path / "a.png").read_bytes(), "no video"),
        (videos.audio(), "no stream of pictures"),
    ]:
        reason, message = refused(Video(data))
        assert reason == "video_broken" and words in message and f"of {len(data)} bytes" in message
    assert "a folder, not a file" in refused(Video(str(tmp_path)))[1]
    os.mkfifo(tmp_path / "pipe")
    assert "no regular file" in refused(Video(str(tmp_path / "pipe")))[1]
    reason, message = refused(Video(str(tmp_path / "gone" / "a.mp4")))
    assert reason == "video_missing" and "does not exist either" in message
    assert capfd.readouterr() == ("", "") and not caplog.records


@pytest.mark.parametrize(
    "container, options", [("mp4", None), ("mp4", {"movflags": "faststart"}), ("matroska", None), ("avi", None)]
)
def test_an_interrupted_download_is_found_in_the_header(container, options):
    data = videos.video(40, 5, container=container, options=options)
    assert refused(Video(data[: len(data) // 2]))[0] == "video_broken"


def test_frames_that_are_missing_at_the_end(monkeypatch):
    data = videos.video(10, container="mpegts", codec="libx264")
    assert numbers(data, [9, 9]) == [9, 9]
    assert numbers(data, [3, 10, 11]) == [3, 9, 9]  # a container may count one or two too many
    with pytest.raises(RecordError, match="ends after 10 frames, and frame 12 is wanted") as caught:
        read_frames(Video(data), [3, 12], "f.json[3]")
    assert (caught.value.reason, caught.value.origin) == ("video_broken", "f.json[3]")


@pytest.mark.parametrize(
    "limit, value, words",
    [
        ("MAX_FILE_BYTES", 100, "bytes, the limit is 100"),
        ("MAX_FRAMES", 9, "10 frames or more, the limit is 9"),
        ("MAX_SECONDS", 1, "2 seconds, the limit is 1"),
    ],
)
@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_limits(container, limit, value, words, monkeypatch):
    data = videos.video(container=container)
    monkeypatch.setattr(video_module, limit, value)
    reason, message = refused(Video(data))
    assert reason == "video_too_large" and words in message


def test_the_limit_of_pixels(monkeypatch, tmp_path):
    monkeypatch.setattr(video_module.images, "MAX_PIXELS", 3000)
    reason, message = refused(Video(videos.video()))
    assert reason == "video_too_large" and "64 x 48 pixels, the limit is 3,000" in message
    assert refused(Video(frame_files(tmp_path)))[0] == "video_too_large"


def test_a_list_that_is_too_long(tmp_path):
    assert refused(Video(("a.png",) * 2, fps=1e-5))[0] == "video_too_large"


def test_without_the_package(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    video_module._import_av.cache_clear()
    with pytest.raises(UserError, match=r"f.json\[3\]: a video needs the package av; .*'.\[video\]'") as caught:
        read_video_size(Video(b"x"), "f.json[3]")
    assert type(caught.value) is UserError  # of the run, not of the record
