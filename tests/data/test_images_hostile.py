"""Files made to break a reader: whatever they hold, pixels come out or one `RecordError`, soon and in little memory."""

import functools
import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from jaxvlm.data.media import images
from jaxvlm.data.media.images import load_image
from jaxvlm.data.records import RecordError
from tests.layouts import check_header

FORMATS = ["JPEG", "JPEG progressive", "PNG", "PNG palette", "WEBP", "WEBP lossless", "WEBP animated", "GIF", "BMP"]
FORMATS += ["BMP RLE", "TIFF", "TIFF deflate", "TIFF tiles", "PPM", "PGM plain"]


@functools.cache
def sample(kind):
    """A small image of each kind that is accepted, with EXIF where there can be."""
    chance = np.random.default_rng(7)
    picture = Image.fromarray(chance.integers(0, 256, (23, 31, 3), dtype=np.uint8)).resize((37, 29), 3)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a camera"
    if kind == "BMP RLE":  # rows of runs: (count, index) pairs, an end of line, an end of image
        rows = b"".join(bytes([20, y % 4, 12, (y + 1) % 4, 0, 0]) for y in range(24)) + b"\0\1"
        palette = bytes(range(16))
        head = struct.pack("<IiiHHIIiiII", 40, 32, 24, 1, 8, 1, len(rows), 0, 0, 4, 4)
        return b"BM" + struct.pack("<IHHI", 70 + len(rows), 0, 0, 70) + head + palette + rows
    if kind == "TIFF tiles":
        return tiled_tiff(32, 16, 16, 16, bytes(range(256)) * 2)
    if kind == "PGM plain":
        return b"P2\n# grey\n7 5\n255\n" + b" ".join(b"%d" % (7 * i) for i in range(35)) + b"\n"
    out = io.BytesIO()
    name, _, variant = kind.partition(" ")
    options = {
        "progressive": {"progressive": True},
        "lossless": {"lossless": True},
        "animated": {"save_all": True, "append_images": [picture.rotate(180)]},
        "deflate": {"compression": "tiff_adobe_deflate"},
    }.get(variant, {})
    if name in ("JPEG", "PNG", "WEBP", "TIFF"):
        options["exif"] = exif
    (picture.quantize(16) if variant == "palette" else picture).save(out, name, **options)
    return out.getvalue()


def tiled_tiff(width, height, tile_width, tile_height, pixels, compression=1):
    """A grey TIFF whose only strip is so many equal tiles, `pixels` each of them in turn."""
    across, down = -(-width // tile_width), -(-height // tile_height)
    count = across * down
    each = len(pixels) // count
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1), (277, 3, 1)]
    tags += [(322, 4, tile_width), (323, 4, tile_height), (324, 4, None), (325, 4, None)]
    after = 8 + 2 + 12 * len(tags) + 4
    start = after + 8 * count
    tables = {324: [start + i * each for i in range(count)], 325: [each] * count}
    out = b"II*\0" + struct.pack("<IH", 8, len(tags))
    for tag, kind, value in tags:
        if value is None:
            value = tables[tag][0] if count == 1 else after + (0 if tag == 324 else 4 * count)
            out += struct.pack("<HHII", tag, kind, count, value)
        else:
            out += struct.pack("<HHII", tag, kind, 1, value)
    out += struct.pack("<I", 0) + struct.pack(f"<{2 * count}I", *tables[324], *tables[325])
    return out + pixels


def ends_well(data, size=16):
    """Whether there were pixels; anything but pixels and `RecordError` fails."""
    for aspect in ("pad", "square"):
        try:
            check_header(data, size, aspect, "d.json[3]")
            pixels = load_image(data, size, aspect, "d.json[3]")
        except RecordError as error:
            assert error.reason in images.IMAGE_REASONS and error.origin == "d.json[3]"
            assert str(error).startswith("d.json[3]: ") and "\n" not in str(error)
            return False
        assert (pixels.dtype, pixels.shape) == (np.uint8, (size, size, 3))
    return True


@pytest.mark.parametrize("kind", FORMATS)
def test_samples_are_good(kind):
    assert ends_well(sample(kind))


@st.composite
def damaged(draw):
    """A sample with a few bytes changed (most often in its header), cut, doubled, or with another's bytes in it."""
    data = bytearray(sample(draw(st.sampled_from(FORMATS))))
    for _ in range(draw(st.integers(1, 4))):
        end = len(data) if draw(st.booleans()) else min(len(data), 120)
        at = draw(st.integers(0, max(end - 1, 0)))
        match draw(st.sampled_from(["bit", "byte", "word", "cut", "drop", "insert", "other", "tail"])):
            case "bit" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if data:
                data[at] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))
            case "word":
                value = draw(st.sampled_from([0, 1, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF]))
                data[at : at + 4] = value.to_bytes(4, draw(st.sampled_from(["little", "big"])))
            case "cut":
                del data[draw(st.integers(0, len(data))) :]
            case "drop":
                del data[at : at + draw(st.integers(1, 40))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=40))
            case "other":
                other = sample(draw(st.sampled_from(FORMATS)))
                data[at:] = other[draw(st.integers(0, len(other))) :]
            case "tail":
                data += sample(draw(st.sampled_from(FORMATS)))
    return bytes(data)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")  # pytest takes away the filter of images.py
@settings(max_examples=800, suppress_health_check=list(HealthCheck))
@given(damaged())
def test_damaged_files_give_pixels_or_a_record_error(data):
    ends_well(data)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@settings(max_examples=500)
@given(st.sampled_from([prefix for prefixes, _ in images._DECODERS for prefix in prefixes]), st.binary(max_size=200))
def test_noise_behind_a_good_beginning(prefix, noise):
    ends_well(prefix + noise)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("kind", FORMATS)
def test_every_truncation(kind):
    data = sample(kind)
    for length in range(0, len(data), 1 + len(data) // 120):
        ends_well(data[:length])
    with pytest.raises(RecordError, match="cannot be decoded"):
        load_image(data[: len(data) // 2], 16, "pad")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks, data=b""):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def make_bombs():
    """Small files that declare, or unpack to, hundreds of MiB: of pixels, and of text."""
    zeros = zlib.compress(bytes(200 * 2**20), 9)  # 200 MiB in 200 KB
    huge = {
        "PNG": png(60_000, 60_000, data=zeros),
        "JPEG": sample("JPEG").replace(struct.pack(">HH", 29, 37), struct.pack(">HH", 65_500, 65_500)),
        "GIF": sample("GIF")[:6] + struct.pack("<HH", 65_535, 65_535) + sample("GIF")[10:],
        "WEBP": sample("WEBP animated")[:24] + b"\xfe\x3f\0\xfe\x3f\0" + sample("WEBP animated")[30:],
        "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "PPM": b"P6 50000 50000 255\n",
        "TIFF": tiled_tiff(50_000, 50_000, 50_000, 50_000, zeros, 8),
        "TIFF of one huge tile": tiled_tiff(10, 10, 16_384, 12_800, zeros, 8),
    }
    texts = {
        "zTXt": chunk(b"zTXt", b"Comment\0\0" + zeros),
        "iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros),
        "iCCP": chunk(b"iCCP", b"icc\0\0" + zeros),
        "many zTXt": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**20 - 1), 9)) * 200,
    }
    return huge, {name: png(1, 1, bomb, data=zlib.compress(bytes(4))) for name, bomb in texts.items()}


MEASURE = """
import resource, sys
from PIL import Image
Image.MAX_IMAGE_PIXELS = None  # as other libraries do; our limit holds without it
from jaxvlm.data.media.images import load_image
from jaxvlm.data.records import RecordError
from tests.layouts import check_header
from tests.layouts import check_header
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
for path in sys.argv[1:]:
    before = peak()
    for read in (check_header, load_image):
        try:
            read(path, 28, "pad")
            print("read", end=" ")
        except RecordError as error:
            print(error.reason, end=" ")
    print(peak() - before)
"""


def test_bombs_take_no_memory(tmp_path):
    """In a process of its own, whose peak is not that of other tests; MiB beyond what it had before each file."""
    huge, texts = make_bombs()
    bombs = huge | texts
    paths = [tmp_path / f"{index}.png" for index in range(len(bombs))]
    for path, data in zip(paths, bombs.values(), strict=True):
        path.write_bytes(data)
    paths.insert(0, tmp_path / "good.jpg")  # pays for what is loaded once
    paths[0].write_bytes(sample("JPEG"))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True, timeout=60, check=True
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    found = dict(zip(["good", *bombs], lines, strict=True))
    assert found.pop("good")[:2] == ["read", "read"]
    assert all(int(mebibytes) < 100 for *_, mebibytes in found.values()), found
    assert all(found[name][:2] == ["image_too_large"] * 2 for name in huge), found
    # Pillow reads no metadata that is longer than a megabyte, or 64 in all: an error, or not read, but never expanded.
    assert all(set(found[name][:2]) <= {"read", "image_broken"} for name in texts), found


def test_a_jpeg_of_many_scans_is_not_decoded():
    """Each takes 16 bytes of the file and another pass over all pixels."""
    out = io.BytesIO()
    Image.new("RGB", (2000, 2000), "red").save(out, "JPEG", progressive=True)
    data = out.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    assert ends_well(data[:-2] + 20 * scan + data[-2:])
    with pytest.raises(RecordError, match="too large .2000 x 2000 pixels in 40,010 scans, the limit of their product"):
        load_image(data[:-2] + 40_000 * scan + data[-2:], 16, "pad")


def test_limits_are_ours_and_in_the_message(tmp_path, monkeypatch):
    data = sample("PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert ends_well(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(images, "MAX_PIXELS", 37 * 29 - 1)
    with pytest.raises(RecordError, match=r"d.json\[3\]: image .* too large \(37 x 29 pixels, the limit is 1,072\)"):
        check_header(data, 16, "pad", "d.json[3]")
    monkeypatch.undo()
    monkeypatch.setattr(images, "MAX_FILE_BYTES", len(data) - 1)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (data, str(path)):
        for read in (check_header, load_image):
            with pytest.raises(RecordError, match=f"{len(data):,} bytes, the limit is {len(data) - 1:,}") as caught:
                read(source, 16, "pad", "d.json[3]")
            assert caught.value.reason == "image_too_large"


@pytest.mark.parametrize(
    "name, words, reason",
    [
        ("pipe", "it is no regular file", "image_broken"),
        ("/dev/zero", "it is no regular file", "image_broken"),
        ("", "missing", "image_missing"),
        (".", "it is a folder", "image_broken"),
        ("good.png/a.png", "is missing", "image_missing"),
        ("n" * 300, "File name too long", "image_broken"),
        ("d/" * 3000, "File name too long", "image_broken"),
        ("a\0b.png", "null byte", "image_broken"),
        ("\udfff.png", "surrogates", "image_broken"),
        ("loop", "symbolic links", "image_broken"),
    ],
)
def test_paths_that_are_no_file(tmp_path, name, words, reason):
    os.mkfifo(tmp_path / "pipe")
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    (tmp_path / "good.png").write_bytes(sample("PNG"))
    path = name and os.path.join(tmp_path, name)
    for read in (check_header, load_image):
        with pytest.raises(RecordError, match=words) as caught:
            read(path, 16, "pad", "d.json[3]")
        assert caught.value.reason == reason
        assert str(caught.value).isprintable()


def test_formats_that_need_another_program_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    for data in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n%%EOF\n",
        b"%PDF-1.7\n",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>',
        b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\x28\1\0\0\x16\0\0\0",
    ):
        path = tmp_path / "a.jpg"  # the name does not count
        path.write_bytes(data)
        for read in (check_header, load_image):
            with pytest.raises(RecordError, match="its first bytes are not those of JPEG"):
                read(str(path), 16, "pad")


def test_broken_metadata_costs_no_image_and_no_warning():
    good = sample("JPEG")
    start = good.index(b"Exif\0\0")
    broken = {
        "no TIFF": good.replace(b"Exif\0\0", b"Exif\0\0XXXX", 1),
        "cut": good[: start + 10] + b"\xff" * 12 + good[start + 22 :],
    }
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 1000)
    out = io.BytesIO()
    Image.new("P", (9, 9)).save(out, "PNG", pnginfo=info, transparency=bytes(range(9)))
    script = f"from jaxvlm.data.media.images import load_image\nfor data in {[*broken.values(), out.getvalue()]!r}:\n"
    script += "    load_image(data, 16, 'pad')\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_file_that_is_closed_again(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(sample("JPEG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        for data in (sample("JPEG"), sample("JPEG")[:300], b"no image"):
            path.write_bytes(data)
            for _ in range(20):
                ends_well(str(path))
        assert before == (len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0)
