"""Sizes, patches, positions and window order, against transformers and against tables of the official rules."""

import dataclasses
import io
import pickle
import random as python_random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as original_resize
from transformers.vision_utils import get_vision_window_index

from jaxvlm.batch import Batch
from jaxvlm.data.records import RecordError
from jaxvlm.families.qwen_vl.config import KINDS, MergerConfig, QwenVLConfig, QwenVLMedia, TowerConfig, VideoConfig
from jaxvlm.families.qwen_vl.layout import make_layout, order_groups
from jaxvlm.families.qwen_vl.resize import smart_resize
from jaxvlm.media import MediaError, MediaExtent, Size

pytestmark = pytest.mark.torch

VIDEO = VideoConfig(fps=2.0, min_frames=4, max_frames=768, min_pixels=4096, max_pixels=10**6)
PATCH = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16}
HUB = {"qwen2_vl": (3136, 12845056), "qwen2_5_vl": (3136, 12845056), "qwen3_vl": (65536, 16777216)}
SMALL = (4 * 28**2, 20 * 28**2)
STRIP_AND_OTHERS = [(480, 640), (55, 200), (33, 3000), (300, 97), (28, 56), (1, 200), (231, 231)]  # height, width


def layout_of(kind="qwen2_vl", limits=SMALL, *, window=0, units=400, merge=2, video=None):
    tower = TowerConfig(
        embed_dim=8, mlp_dim=12, num_layers=1, num_heads=2, patch_size=PATCH[kind], image_mean=(0.4, 0.5, 0.6),
        image_std=(0.2, 0.3, 0.25), activation="silu", is_gated=True, norm="rms", norm_epsilon=1e-6, patch_bias=False,
        window=window,
    )  # fmt: skip
    config = QwenVLConfig("qwen_vl", None, "float32", "none", kind, tower, MergerConfig(merge))
    return make_layout(config, QwenVLMedia(units, *limits, video))


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(pixels):
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, "PNG", compress_level=0)
    return kept.getvalue()


def empty_media(layout, units=400):
    return Batch.empty(Batch.spec(rows=2, tokens=8, media=layout.spec(2, units), position_axes=3)).media


def some_sizes(count, longest=20000, seed=0):
    """Sides over several orders of magnitude, and halves of multiples, which rounding decides."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.uniform(0, np.log(longest), (count, 2))).astype(int)
    sizes[: count // 4] = random.integers(1, 80, (count // 4, 2)) * random.choice([14, 16, 28, 32], (count // 4, 2))
    return [tuple(map(int, size)) for size in sizes]


def outcome(function, *arguments, **options):
    try:
        return function(*arguments, **options)
    except (MediaError, ValueError) as error:
        return "200" in str(error)


@pytest.mark.parametrize("factor", [28, 32])
@pytest.mark.parametrize("limits", [(3136, 1003520), (3136, 12845056), (784, 50176), (65536, 16777216), (9000, 9999)])
def test_smart_resize(factor, limits):
    strips = [(1, 1), (1, 200), (1, 201), (200, 1), (14, 2000), (20, 4000), (42, 70), (41, 8200), (100, 20000)]
    for height, width in strips + some_sizes(3000):
        want = outcome(original_resize, height, width, factor, *limits)
        assert outcome(smart_resize, height, width, factor, *limits) == want, (height, width)


def test_sizes_of_official_tables():
    table = {  # height, width: tokens of qwen2_vl and qwen2_5_vl at the hub's limits, at 1003520 pixels, of qwen3_vl
        (336, 336): (144, 144, 100), (480, 640): (391, 391, 300), (512, 512): (324, 324, 256),
        (768, 1024): (999, 999, 768), (1024, 1024): (1369, 1225, 1024), (1080, 1920): (2691, 1222, 2040),
        (2200, 1700): (4819, 1240, 3657), (3024, 4032): (15552, 1230, 11844),
    }  # fmt: skip
    layouts = [layout_of("qwen2_vl", HUB["qwen2_vl"]), layout_of("qwen2_5_vl", (3136, 1003520), window=8)]
    layouts.append(layout_of("qwen3_vl", HUB["qwen3_vl"]))
    for size, tokens in table.items():
        for layout, count in zip(layouts, tokens, strict=True):
            assert layout.measure(Size(*size)) == MediaExtent(count, 4 * count)
            ids, is_feature = layout.expand(7, Size(*size))
            assert ids.tolist() == [7] * count and is_feature.all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("video", [None, VIDEO])
def test_patches_of_the_original_processor(kind, video):
    layout = layout_of(kind, video=video)
    processor = Qwen2VLImageProcessorPil(
        patch_size=PATCH[kind], merge_size=2, temporal_patch_size=2, min_pixels=SMALL[0], max_pixels=SMALL[1]
    )
    for seed, size in enumerate(STRIP_AND_OTHERS):
        pixels = noise(*size, seed)
        want = processor(Image.fromarray(pixels), do_rescale=False, do_normalize=False, return_tensors="np")
        for exact in (True, False):
            loaded = layout.load(png(pixels), "here", exact=exact)
            media = empty_media(layout)
            features = layout.write(media, 1, 8, loaded)
            count = layout.units_of(loaded)
            assert layout.measure(Size(*size)) == MediaExtent(count // 4, count)
            p = PATCH[kind]
            own = np.moveaxis(media.pixels[1, 8 : 8 + count], -1, 1)  # patch, colour, frame, Y, X
            rows = np.broadcast_to(own, (count, 3, 2, p, p)).reshape(count, -1)
            np.testing.assert_array_equal(rows, want["pixel_values"].astype(np.uint8))
            assert media.grids[1, 8].tolist() == want["image_grid_thw"][0, 1:].tolist()
            assert features.tolist() == list(range(2, 2 + count // 4))
            assert not media.frames[1, 8 + count :].any() and not media.frames[0].any()


@pytest.mark.parametrize("window", [4, 8])
def test_window_order(window):
    random = np.random.default_rng(1)
    for rows, columns in [(5, 9), (4, 4), (1, 29), (8, 3), *random.integers(1, 20, (20, 2)).tolist()]:
        grid = torch.tensor([[1, 2 * rows, 2 * columns]])
        want, _ = get_vision_window_index(grid, spatial_merge_size=2, window_size=window * 14, patch_size=14)
        assert order_groups(rows, columns, window // 2).tolist() == want.tolist()
    assert order_groups(2, 3, 2).tolist() == [0, 1, 3, 4, 2, 5]


def test_windows_change_only_the_order():
    plain, windowed = layout_of("qwen2_5_vl"), layout_of("qwen2_5_vl", window=4)
    loaded = plain.load(png(noise(150, 110)), "here", exact=True)  # 5 x 4 tokens
    media, ordered = empty_media(plain), empty_media(windowed)
    raster, features = plain.write(media, 0, 4, loaded), windowed.write(ordered, 0, 4, loaded)
    assert sorted(features) == raster.tolist() != features.tolist()
    groups = (np.arange(4) + 4 * features[:, None]).reshape(-1)  # patches in the order of positions
    for name in ("pixels", "places", "frames", "grids"):
        taken = getattr(ordered, name)[0, groups]
        np.testing.assert_array_equal(taken, getattr(media, name)[0, 4 : 4 + len(groups)])
    windows = ordered.places[0, 4 : 4 + len(groups)] // 4
    changes = np.any(windows[1:] != windows[:-1], axis=1).sum()
    assert changes + 1 == len(np.unique(windows, axis=0)) == 6  # each window is contiguous


@pytest.mark.parametrize("merge", [1, 2, 3])
def test_places_are_those_of_the_pixels(merge):
    layout = layout_of(limits=(2000, 30000), merge=merge, window=2 * merge)
    loaded = layout.load(png(noise(120, 210)), "here", exact=True)
    media = empty_media(layout)
    layout.write(media, 0, 0, loaded)
    for at in range(layout.units_of(loaded)):
        row, column = media.places[0, at] * 14
        np.testing.assert_array_equal(media.pixels[0, at, 0], loaded[0, row : row + 14, column : column + 14])


@pytest.mark.parametrize(("window", "video"), [(0, None), (4, None), (4, VIDEO)])
def test_two_images_share_a_row(window, video):
    layout = layout_of(window=window, video=video)
    images = [layout.load(png(noise(*size, 3)), "here", exact=True) for size in [(150, 110), (60, 90)]]
    media, at, features = empty_media(layout), 0, []
    for loaded in images:
        features.append(layout.write(media, 1, at, loaded))
        at += layout.units_of(loaded)
    assert np.unique(media.frames[1]).tolist() == [0, 1, 2] and (np.diff(media.frames[1, :at]) >= 0).all()
    pictures = layout.preview(media, 1)
    assert layout.preview(media, 0) == [] and len(pictures) == 2
    for picture, loaded, own in zip(pictures, images, features, strict=True):
        np.testing.assert_array_equal(picture.pixels, loaded[0])
        np.testing.assert_array_equal(picture.features, own)
        assert own.dtype == picture.features.dtype == np.int32
    assert sorted(np.concatenate(features)) == list(range(at // 4))


def test_frames_of_a_video_are_paired():
    """Two frames to a patch; the last frame of an odd number is repeated."""
    layout = layout_of(window=4, video=VIDEO)
    loaded = np.stack([noise(84, 140, seed) for seed in range(5)])
    media = empty_media(layout)
    assert layout.units_of(loaded) == 3 * 6 * 10
    features = layout.write(media, 0, 0, loaded)
    assert np.bincount(media.frames[0]).tolist() == [400 - 180, 60, 60, 60]
    for number, (picture, pair) in enumerate(zip(layout.preview(media, 0), [(0, 1), (2, 3), (4, 4)], strict=True)):
        np.testing.assert_array_equal(picture.pixels, loaded[pair[0]])
        np.testing.assert_array_equal(picture.features, features[15 * number : 15 * (number + 1)])
        for at in np.flatnonzero(media.frames[0] == number + 1):
            row, column = media.places[0, at] * 14
            np.testing.assert_array_equal(media.pixels[0, at], loaded[list(pair), row : row + 14, column : column + 14])


def test_augment_moves_whole_images():
    layout = layout_of(window=4)
    loaded = layout.load(png(noise(150, 110)), "here", exact=True)
    flips = [layout.augment(loaded, python_random.Random(seed), flip=True, shift=0) for seed in range(8)]
    kinds = {(flip == loaded).all(): flip for flip in flips}
    np.testing.assert_array_equal(kinds[False], loaded[:, :, ::-1])
    assert True in kinds
    media = empty_media(layout)
    layout.write(media, 0, 0, kinds[False])
    np.testing.assert_array_equal(layout.preview(media, 0)[0].pixels, loaded[0, :, ::-1])
    pair = np.concatenate([loaded, loaded])
    moved = layout.augment(pair, python_random.Random(5), flip=True, shift=9)
    assert moved.shape == pair.shape and (moved != pair).any()
    np.testing.assert_array_equal(moved[0], moved[1])


def test_a_blank_image_has_the_size_of_its_own():
    layout = layout_of()
    blank = layout.blank(Size(150, 110))
    assert blank.shape == layout.load(png(noise(150, 110)), "here", exact=True).shape
    assert blank[0, 3, 5].tolist() == [102, 128, 153] and blank.dtype == np.uint8


# Positions


def original_positions(kind, types, grids, videos=()):
    """`types`: 0 text, 1 image, 2 video, for `get_rope_index`, which reads of the model only the merge size."""
    from transformers import Qwen2_5_VLModel, Qwen2VLModel, Qwen3VLModel

    original = dict(zip(KINDS, (Qwen2VLModel, Qwen2_5_VLModel, Qwen3VLModel), strict=True))[kind]
    text = {
        "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 31,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    }  # fmt: skip
    size = "hidden_size" if kind != "qwen2_vl" else "embed_dim"
    vision = {"depth": 1, size: 16, "num_heads": 2, "deepstack_visual_indexes": [], "out_hidden_size": 16}
    with torch.device("meta"):
        model = original(original.config_class(text_config=text, vision_config=vision))
    grids = torch.tensor([[1, *grid] for grid in grids]) if grids else None
    types = torch.tensor([types], dtype=torch.int32)
    media = {"image_grid_thw": grids, "video_grid_thw": torch.tensor(videos) if videos else None}
    positions, _ = model.get_rope_index(torch.ones_like(types, dtype=torch.int64), types, **media)
    return positions[:, 0].T.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_positions_of_images(kind):
    layout, random = layout_of(kind), np.random.default_rng(4)
    for number in range(12):
        sizes = [Size(*map(int, random.integers(20, 400, 2))) for _ in range(number % 4)]
        runs = [0] * int(random.integers(0 if sizes else 1, 5))
        for at, size in enumerate(sizes):
            last = at == len(sizes) - 1
            text = int(random.integers(0 if last else 1, 4))  # transformers cannot read two images without text between
            runs += [1] * layout.measure(size).positions + [0] * text
        index = np.cumsum(runs) * runs - 1
        target = [smart_resize(*size[:2], layout.factor, *SMALL) for size in sizes]
        grids = [(height // layout.patch, width // layout.patch) for height, width in target]
        found = layout.positions(index.astype(np.int32), sizes)
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, original_positions(kind, runs, grids))


def test_positions_by_hand():
    """Text, an image of 2 x 3 tokens, directly after it one of 3 x 1, text."""
    layout = layout_of(limits=(1, 10**6))
    index = np.array([-1, -1, *range(9), -1, -1])
    found = layout.positions(index, [Size(56, 84), Size(84, 28)]).T.tolist()
    assert found == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 5, 5, 8, 9],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8, 9],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 5, 5, 8, 9],
    ]
    assert layout.positions(np.full(3, -1), []).tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]


# Stored images


def test_a_resized_image_may_be_resized_again():
    """So that it is not what can be stored."""
    assert smart_resize(20, 4000, 28, 784, 50176) == (28, 3164) != smart_resize(28, 3164, 28, 784, 50176)
    assert smart_resize(41, 8200, 28, 3136, 12845056) == (28, 8204)  # 293:1, which is refused
    assert smart_resize(300, 300, 28, 7 * 784, 8 * 784) == (56, 56) != smart_resize(56, 56, 28, 7 * 784, 8 * 784)


@pytest.mark.parametrize("limits", [SMALL, (784, 50176), (7 * 784, 8 * 784), HUB["qwen2_vl"]])
def test_stored_images_load_as_their_source(limits):
    layout, kept_as_resized = layout_of(limits=limits), 0
    for size in [(60, 40), (20, 4000), (41, 8200), (300, 300), (97, 155), (1, 190), *some_sizes(12, 400, seed=5)]:
        if max(size) > 200 * min(size):
            continue
        source = png(noise(*size))
        stored = layout.store(source, "here", 0)
        loaded = layout.load(source, "here", exact=False)
        np.testing.assert_array_equal(layout.load(stored, "here", exact=False), loaded)
        with Image.open(io.BytesIO(stored)) as image:
            assert layout.measure(Size(image.height, image.width)) == layout.measure(Size(*size))
            kept_as_resized += (image.height, image.width) == loaded.shape[1:3]
    assert kept_as_resized


def test_only_extreme_sizes_are_stored_as_they_are():
    """With the hub's limits, of sizes up to 25:1 all."""
    layout = layout_of(limits=HUB["qwen2_vl"])
    for height, width in some_sizes(4000):
        if max(height, width) <= 25 * min(height, width):
            assert layout._is_final(*smart_resize(height, width, 28, *HUB["qwen2_vl"])), (height, width)


def test_a_stored_jpeg():
    layout = layout_of()
    stored = layout.store(png(np.full((150, 110, 3), (90, 120, 40), np.uint8)), "here", 90)
    with Image.open(io.BytesIO(stored)) as image:
        assert (image.format, image.size) == ("JPEG", (112, 140))
    assert np.abs(layout.load(stored, "here", exact=True).astype(int) - [90, 120, 40]).max() <= 2
    strip = Image.new("RGB", (65520, 336))
    kept = io.BytesIO()
    strip.save(kept, "PNG", compress_level=1)
    long = layout_of(limits=(784, 10**9)).store(kept.getvalue(), "here", 90)
    assert long.startswith(b"\x89PNG")  # a side that no JPEG can have


# Settings and errors


def test_least_extent():
    for limits in [SMALL, (784, 50176), (7 * 784, 8 * 784), (9 * 784, 9 * 784), (1, 784), (5000, 10**6)]:
        layout = layout_of(limits=limits)
        sizes = [size for size in some_sizes(3000, 3000) if max(size) <= 200 * min(size)]
        least = min(layout.measure(Size(*size)).positions for size in sizes)
        assert layout.least_positions <= least and layout.least_units == 4 * layout.least_positions
        assert layout.least_positions == least or limits[1] < 2 * limits[0]


def test_an_image_that_is_too_long():
    layout = layout_of()
    with pytest.raises(MediaError, match="an image of 201 x 1 pixels is longer than 200:1") as caught:
        layout.measure(Size(1, 201))
    assert caught.value.reason == "image_ratio"
    for call in (lambda s: layout.load(s, "here", exact=True), lambda s: layout.store(s, "here", 0)):
        with pytest.raises(RecordError, match="here: an image of 1 x 201 pixels") as refused:
            call(png(noise(201, 1)))
        assert refused.value.reason == "image_ratio"
        with pytest.raises(RecordError, match="cannot be decoded"):
            call(b"nothing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limits": (0, 50176)}, "data.media.min_pixels = 0, expected 1 or more"),
        ({"limits": (500, 783)}, "data.media.max_pixels = 783, expected 784 or more, one token"),
        ({"limits": (3000, 2000)}, "data.media.min_pixels = 3000, expected at most data.media.max_pixels = 2000"),
        ({"units": 42}, "data.media.units = 42, expected a multiple of 4, the patches of a token"),
        ({"units": 12}, "data.media.units = 12, expected at least 16, the patches of the smallest image that"),
        ({"window": 5}, "model.vision.window = 5, expected a multiple of merge_size = 2"),
        ({"video": {"fps": 0.0}}, "data.media.video.fps = 0.0, expected more than 0"),
        ({"video": {"min_frames": 3}}, "data.media.video.min_frames = 3, expected an even number of 2 or more"),
        ({"video": {"max_frames": 2}}, "max_frames = 2, expected an even number of at least data.media.video.min_fr"),
        ({"video": {"min_pixels": 0}}, "data.media.video.min_pixels = 0, expected 1 or more"),
        ({"video": {"max_pixels": 9}}, "data.media.video.max_pixels = 9, expected 784 or more"),
    ],
)
def test_invalid_settings(changes, message):
    if "video" in changes:
        changes = {"video": dataclasses.replace(VIDEO, **changes["video"])}
    found = layout_of(**changes).problems(0)
    assert len(found) == 1 and message in found[0]


def test_valid_settings():
    assert layout_of(video=VIDEO, window=4).problems(27) == [] == layout_of(units=0).problems(0)
    assert layout_of().problems(28) == ["data.augment.shift = 28, expected less than 28, the shortest side in pixels"]
    layout = pickle.loads(pickle.dumps(layout_of()))
    assert layout.settings() == {"factor": 28, "min_pixels": SMALL[0], "max_pixels": SMALL[1]}
    assert (layout.unit, layout.position_axes) == ("patches", 3)
