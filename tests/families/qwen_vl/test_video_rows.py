"""Videos in rows of Qwen-VL: what they take, the frames that are loaded, their positions, and how they are kept."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from jaxvlm.batch import Batch
from jaxvlm.data.media.video import read_video_size
from jaxvlm.data.records import RecordError
from jaxvlm.families.qwen_vl.config import KINDS, QwenVLMedia, VideoConfig
from jaxvlm.families.qwen_vl.layout import make_layout
from jaxvlm.media import MediaError, MediaExtent, Size, Video
from tests.families.qwen_vl import pairs

pytestmark = pytest.mark.torch  # the tiny configs are made by transformers

VIDEO = VideoConfig(fps=2.0, min_frames=4, max_frames=6, min_pixels=64, max_pixels=512)
MEDIA = QwenVLMedia(units=200, min_pixels=16, max_pixels=100_000, video=VIDEO)


def layout_of(kind, media=MEDIA):
    return make_layout(pairs.our_config(pairs.hf_config(kind)), media)


def make_video(count, height=16, width=32, fps=2.0):
    """Frames of one grey each, numbered by it."""
    files = []
    for number in range(count):
        kept = io.BytesIO()
        Image.new("RGB", (width, height), (10 * number,) * 3).save(kept, "PNG")
        files.append(kept.getvalue())
    return Video(tuple(files), fps)


def test_frames_are_sampled_and_paired():
    """10 frames at 4 a second last 2.5 seconds: at 2 a second 5, made even, 4: the first, two between, the last."""
    layout, video = layout_of("qwen2_vl"), make_video(10, fps=4.0)
    size = read_video_size(video)
    assert size == Size(16, 32, 10, 4)
    assert layout.extent(size) == MediaExtent(2 * 2 * 4, 2 * 4 * 8)  # two pairs of frames of 4 x 8 patches
    loaded = layout.load(video, "test", exact=True)
    assert loaded[:, 0, 0, 0].tolist() == [0, 30, 60, 90]
    spec = Batch.spec(rows=1, tokens=32, media=layout.spec(1, 200), position_axes=3)
    batch = Batch.empty(spec)
    features = layout.write(batch.media, 0, 0, loaded)
    assert features.tolist() == list(range(16)) and batch.media.pixels.shape[2] == 2
    assert np.unique(batch.media.frames[0]).tolist() == [0, 1, 2]
    assert [picture.pixels[0, 0, 0] for picture in layout.preview(batch.media, 0)] == [0, 60]
    assert layout.blank(size).shape == loaded.shape


@pytest.mark.parametrize(("kind", "step"), [("qwen2_vl", 1), ("qwen2_5_vl", 2)])
def test_positions_of_a_video_between_texts(kind, step):
    """The second pair is one step later, or a second at two steps each; text goes on after the largest number."""
    layout, size = layout_of(kind), Size(16, 32, 4, 2)
    index = np.array([-1, *range(16), -1])
    found = layout.positions(index, [size])
    cells = [[1 + step * pair, 1 + row, 1 + column] for pair in (0, 1) for row in (0, 1) for column in range(4)]
    assert found.tolist() == [[0, 0, 0], *cells, [5, 5, 5]]


def test_what_prepare_keeps_is_loaded_alike():
    layout, video = layout_of("qwen2_vl"), make_video(9, height=20, width=50, fps=3.0)
    kept = layout.store(video, "test", 0)
    np.testing.assert_array_equal(layout.load(kept, "test", exact=True), layout.load(video, "test", exact=True))
    assert layout.extent(read_video_size(kept)) == layout.extent(read_video_size(video))


def test_videos_that_are_refused():
    for kind in KINDS:
        with pytest.raises(MediaError, match="it has a video"):
            layout_of(kind, dataclasses.replace(MEDIA, video=None)).extent(Size(16, 32, 4, 2))
    with pytest.raises(RecordError, match="at least 2 are needed"):
        layout_of("qwen2_vl").load(make_video(1), "data.json[3]", exact=True)
