"""Images of every kind become uint8[size, size, 3], as CLIP's own preprocessing makes them."""

import io
import random

import numpy as np
import pytest
from PIL import Image, ImageDraw
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from jaxvlm.data.media import images
from jaxvlm.data.media.images import augment, load_image
from jaxvlm.data.records import RecordError
from tests.layouts import check_header

SIZES = [(64, 64), (63, 41), (41, 63), (200, 7), (5, 90), (1, 1), (1, 40), (500, 333), (336, 337)]


def encoded(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def picture(width, height, seed=0):
    """Smooth areas, edges and noise."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
    ImageDraw.Draw(image).rectangle((0, 0, width // 2, height // 2), fill=(250, 10, 120))
    return image


def clip(image, size):
    """uint8 pixels of the original: resized and cropped, neither rescaled nor normalised."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_rescale=False,
        do_normalize=False,
    )
    return np.moveaxis(np.asarray(processor(image)["pixel_values"][0]), 0, -1)


def assert_close(have, want, levels=1):
    assert (have.dtype, have.shape) == (np.uint8, want.shape)
    assert np.abs(have.astype(int) - want.astype(int)).max() <= levels


@pytest.mark.parametrize("size", [28, 224])
@pytest.mark.parametrize("width, height", SIZES)
def test_squeeze_is_siglips(width, height, size):
    image = picture(width, height)
    processor = SiglipImageProcessorPil(
        size={"height": size, "width": size}, resample=3, do_rescale=False, do_normalize=False
    )
    want = np.moveaxis(np.asarray(processor(image)["pixel_values"][0]), 0, -1)
    assert_close(load_image(encoded(image), size, "squeeze"), want, levels=0)


@pytest.mark.parametrize("size", [28, 33, 224])
@pytest.mark.parametrize("width, height", SIZES)
def test_square_is_clips_preprocessing(width, height, size):
    image = picture(width, height)
    assert_close(load_image(encoded(image), size, "square"), clip(image, size))


@pytest.mark.parametrize("size", [28, 33, 224])
@pytest.mark.parametrize("width, height", SIZES)
def test_pad_is_llavas_square_and_clips_preprocessing(width, height, size):
    image = picture(width, height)
    side = max(width, height)
    square = np.full((side, side, 3), [122, 116, 104], np.uint8)  # written out, not with the function under test
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = np.asarray(image)
    assert_close(load_image(encoded(image), size, "pad"), clip(Image.fromarray(square), size))


def plain_pad(image, size):
    """The whole square, resized by Pillow."""
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), (122, 116, 104))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(canvas.resize((size, size), Image.Resampling.BICUBIC))


def hard_pictures(width, height):
    """A photo's smooth areas, noise, and saturated edges, where every rounding and clipping shows."""
    chance = np.random.default_rng(width * height)
    few = Image.fromarray(chance.integers(0, 256, (5, 7, 3), dtype=np.uint8))
    yield few.resize((width, height), Image.Resampling.BICUBIC)
    yield picture(width, height)
    yield Image.fromarray(255 * chance.integers(0, 2, (height, width, 3), dtype=np.uint8))
    blocks = 255 * chance.integers(0, 2, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    yield Image.fromarray(blocks.repeat(7, 0).repeat(7, 1)[:height, :width].copy())


@pytest.mark.parametrize("resizer, levels", [(images.simd, 2), (None, 0)], ids=["simd", "pillow"])
@pytest.mark.parametrize(
    "width, height",
    [
        *SIZES,
        (640, 480),
        (333, 500),
        (1999, 1),
        (1, 1501),
        (337, 5),
        pytest.param(901, 1203, marks=pytest.mark.nightly),
    ],
)
def test_pad_is_the_resized_square_however_it_is_computed(width, height, resizer, levels, monkeypatch):
    monkeypatch.setattr(images, "simd", resizer)
    for image in hard_pictures(width, height):
        for size in (28, 224, 336):
            want = plain_pad(image, size)
            assert_close(load_image(encoded(image), size, "pad", exact=False), want, levels)
            assert_close(load_image(encoded(image), size, "pad"), want, 0)


def flat(data, size=8):
    """The one colour of an image that has one."""
    pixels = load_image(data, size, "square").reshape(-1, 3)
    assert (pixels == pixels[0]).all()
    return tuple(int(x) for x in pixels[0])


def test_modes():
    def filled(mode, colour):
        return Image.new(mode, (9, 5), colour)

    assert flat(encoded(filled("RGB", (1, 2, 3)))) == (1, 2, 3)
    assert flat(encoded(filled("L", 77))) == (77, 77, 77)
    assert flat(encoded(filled("1", 1))) == (255, 255, 255)
    assert flat(encoded(filled("P", (9, 8, 7)))) == (9, 8, 7)
    assert flat(encoded(filled("CMYK", (0, 255, 255, 0)), "TIFF")) == (255, 0, 0)
    red, green, blue = flat(encoded(filled("CMYK", (0, 255, 255, 0)), "JPEG", quality=100))
    assert red > 250 > 5 > max(green, blue)


def test_transparency_lies_over_white():
    half = Image.new("RGBA", (9, 5), (0, 0, 200, 128))
    assert np.abs(np.array(flat(encoded(half))) - [127, 127, 227]).max() <= 1
    assert flat(encoded(Image.new("RGBA", (9, 5), (0, 0, 200, 0)))) == (255, 255, 255)
    assert flat(encoded(Image.new("LA", (9, 5), (50, 0)))) == (255, 255, 255)
    palette = Image.new("P", (9, 5), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert flat(encoded(palette)) == (10, 20, 30)
    assert flat(encoded(palette, transparency=0)) == (255, 255, 255)
    assert flat(encoded(palette, transparency=1)) == (10, 20, 30)
    assert flat(encoded(Image.new("RGB", (9, 5), (1, 2, 3)), transparency=(1, 2, 3))) == (255, 255, 255)
    assert flat(encoded(Image.new("L", (9, 5), 9), transparency=9)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("deep, grey", [(0, 0), (256, 64), (4095, 255), (32896, 128), (40000, 156), (65535, 255)])
def test_deep_grey_is_scaled_not_clipped(deep, grey, format):
    image = Image.fromarray(np.full((5, 9), deep, np.uint16))
    assert flat(encoded(image, format)) == (grey,) * 3


def test_floating_point_pixels_are_refused():
    with pytest.raises(RecordError, match="floating-point"):
        load_image(encoded(Image.new("F", (4, 4), 0.5), "TIFF"), 8, "pad")


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    assert flat(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.new("RGB", (24, 16), "white")
    ImageDraw.Draw(upright).rectangle((0, 0, 7, 7), fill="red")  # top left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transposition that it is to undo
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    have = load_image(encoded(stored, exif=exif), 24, "pad")
    assert (have == load_image(encoded(upright), 24, "pad")).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_check_decodes_only_what_seems_to_be_cut_short(format, monkeypatch):
    decoded, load = [], images.decode
    monkeypatch.setattr(images, "decode", lambda *args, **kw: decoded.append(args) or load(*args, **kw))
    data = encoded(picture(63, 41), format)
    check_header(data, 16, "pad")
    assert not decoded
    for end in (len(data) // 2, len(data) - 30):
        with pytest.raises(RecordError, match=r"^d.json\[3\]: image .* cannot be decoded") as caught:
            check_header(data[:end], 16, "pad", "d.json[3]")
        assert caught.value.reason == "image_broken"
    decoded.clear()
    check_header(data + b"\0" * 100, 16, "pad")  # sound, with something behind it
    assert len(decoded) == (format != "WEBP")


def test_paths_and_bytes_are_the_same(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(picture(20, 10)))
    assert (load_image(str(path), 16, "pad") == load_image(path.read_bytes(), 16, "pad")).all()


@pytest.mark.parametrize("reads", [check_header, load_image])
def test_what_is_no_image(tmp_path, monkeypatch, reads):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "large.png").write_bytes(encoded(picture(50, 50)))
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    for name, reason, words in [
        ("none.png", "image_missing", "is missing; check its path and data.image_folder"),
        ("x/none.png", "image_missing", f"the folder {tmp_path / 'x'} does not exist"),
        ("text.png", "image_broken", "its first bytes are not those of JPEG, PNG.*; replace"),
        ("empty.png", "image_broken", "it is empty"),
        ("large.png", "image_too_large", "too large .50 x 50 pixels, the limit is 1,000"),
        (".", "image_broken", "cannot be decoded .it is a folder"),
    ]:
        with pytest.raises(RecordError, match=words) as caught:
            reads(str(tmp_path / name), 8, "pad", "d.json[3]")
        assert caught.value.reason == reason
        assert caught.value.origin == "d.json[3]"
        assert str(caught.value).startswith("d.json[3]: ")
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("aspect, refused", [("pad", 14_000), ("square", 300_000)])
def test_a_strip_whose_square_would_not_fit_into_memory(aspect, refused):
    data = encoded(Image.new("1", (refused, 1)))
    for check in (check_header, load_image):
        with pytest.raises(RecordError, match=f"too large .{refused} x 1 takes") as caught:
            check(data, 28, aspect, "d.json[3]")
        assert caught.value.reason == "image_too_large"
    check_header(encoded(Image.new("1", (refused // 2, 1))), 28, aspect)


def test_unknown_aspect():
    with pytest.raises(ValueError, match="pad, square"):
        load_image(b"", 8, "stretch")


class Chance:
    """Draws what a test wants."""

    def __init__(self, mirrored, down, right):
        self.coins, self.moves = [mirrored], [down, right]

    def random(self):
        return 0.0 if self.coins.pop(0) else 0.9

    def randint(self, low, high):
        return self.moves.pop(0)


@pytest.mark.parametrize("down, right", [(0, 0), (2, 0), (0, -1), (-2, 3), (1, -3)])
def test_shift_repeats_the_edge(down, right):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    before = pixels.copy()
    have = augment(pixels, Chance(False, down, right), flip=False, shift=3)
    padded = np.pad(pixels, ((3, 3), (3, 3), (0, 0)), "edge")
    assert (have == padded[3 - down : 9 - down, 3 - right : 8 - right]).all()
    assert (pixels == before).all()


def test_flip():
    pixels = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    for mirrored in (False, True):
        have = augment(pixels, Chance(mirrored, 0, 0), flip=True, shift=0)
        assert (have == pixels[:, :: -1 if mirrored else 1]).all()
        assert (augment(pixels, Chance(mirrored, 0, 0), flip=False, shift=0) == pixels).all()


def test_augmentation_is_a_function_of_the_seed():
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    made = [augment(pixels, random.Random(f"1/{i}"), flip=True, shift=2) for i in range(20)]
    again = [augment(pixels, random.Random(f"1/{i}"), flip=True, shift=2) for i in range(20)]
    assert all((a == b).all() for a, b in zip(made, again, strict=True))
    assert len({image.tobytes() for image in made}) > 10


def test_twelve_bits_in_sixteen_are_not_black():
    """Cameras and CT store 10 to 14 bits in 16; Pillow's own conversion clips, and the upper byte alone is black."""
    levels = np.linspace(0, 4095, 45).round().astype(np.uint16).reshape(5, 9)
    deep = (levels.astype(np.int64) * 65535 // 4095).astype(np.uint16)
    pixels = load_image(encoded(Image.fromarray(levels), "TIFF"), 9, "pad")
    whole = load_image(encoded(Image.fromarray(deep), "TIFF"), 9, "pad")
    assert int(pixels.max()) == 255 and abs(pixels.astype(int) - whole).max() <= 1


def test_float_pixels_are_refused_by_the_header():
    with pytest.raises(RecordError, match="floating-point"):
        check_header(encoded(Image.new("F", (9, 5), 0.5), "TIFF"), 16, "pad", "d.json[3]")
