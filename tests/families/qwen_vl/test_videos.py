"""Frames, sizes and positions of videos, against transformers' third kind and tables of the official rules."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as original_volume

from jaxvlm.families.qwen_vl.config import KINDS
from jaxvlm.families.qwen_vl.positions import place_cells
from jaxvlm.families.qwen_vl.resize import resize_volume
from jaxvlm.families.qwen_vl.videos import (
    frame_times,
    resize_frames,
    sample_frames,
    time_steps,
    time_text,
    video_blocks,
)
from jaxvlm.media import MediaError
from tests.families.qwen_vl.test_layout import VIDEO, outcome, some_sizes

pytestmark = pytest.mark.torch


def test_smart_resize_of_volumes():
    for number, (height, width) in enumerate([(1, 1), (1, 201), (31, 6500), (40, 20)] + some_sizes(3000, 4000)):
        frames, limits = 2 + number % 37, [(4096, 25165824), (131072, 786432)][number % 2]
        options = {"factor": 32, "min_pixels": limits[0], "max_pixels": limits[1]}
        want = outcome(original_volume, frames, height, width, **options)
        assert outcome(resize_volume, frames, height, width, **options) == want, (frames, height, width)


@pytest.mark.parametrize(
    ("frames", "seconds", "count"),
    [(300, 10.0, 20), (300, 10.4, 20), (7, 0.5, 4), (5, 9.0, 4), (3, 1.0, 2), (90000, 3000.0, 768), (31, 15.5, 30)],
)
def test_frames_that_are_taken(frames, seconds, count):
    official = torch.linspace(0, frames - 1, count).round().long()  # as qwen-vl-utils has it
    for kind in KINDS[:2]:
        assert sample_frames(kind, VIDEO, frames, seconds).tolist() == official.tolist()
    assert sample_frames("qwen2_vl", VIDEO, 7, 0.5).tolist() == [0, 2, 4, 6]


def test_frames_and_times_of_the_original():
    settings = SimpleNamespace(fps=2, min_frames=4, max_frames=768)
    for frames, rate in [(300, 30.0), (299, 29.97), (7, 24.0), (3, 2.0), (90000, 30.0), (100, 7.0), (2, 0.1)]:
        original = SimpleNamespace(total_num_frames=frames, fps=rate)
        want = Qwen3VLVideoProcessor.sample_frames(settings, original)
        found = sample_frames("qwen3_vl", VIDEO, frames, frames / rate)
        assert found.tolist() == want.tolist()
        times = Qwen3VLProcessor._calculate_timestamps(None, want, rate, 2)
        assert frame_times(found, rate) == times
    assert time_text(12.345) == "<12.3 seconds>"
    assert frame_times(np.array([0, 5, 9]), 2.0) == [1.25, 4.5]


def test_sizes_of_frames():
    """Limits are of a frame, of the third kind of all frames."""
    video = dataclasses.replace(VIDEO, min_pixels=100_000, max_pixels=602_112)
    assert resize_frames("qwen2_vl", video, 8, 1080, 1920, 28) == (560, 1008)
    assert resize_frames("qwen3_vl", video, 8, 1080, 1920, 32) == (192, 352)


@pytest.mark.parametrize("kind", KINDS)
def test_a_video_of_one_frame_is_an_image(kind):
    with pytest.raises(MediaError, match="a video has 1 frame, at least 2 are needed; use an image"):
        sample_frames(kind, VIDEO, 1, 0.1)


@pytest.mark.parametrize(
    ("kind", "seconds", "steps", "following"),
    [("qwen2_vl", 4.0, [0, 1, 2, 3], 6), ("qwen2_5_vl", 4.0, [0, 2, 4, 6], 9), ("qwen2_5_vl", 3.0, [0, 1, 3, 4], 7)],
)
def test_positions_of_videos(kind, seconds, steps, following):
    """Two text tokens, 8 frames of 2 x 2 tokens as 4 pairs, text after the largest number of all axes."""
    assert time_steps(kind, 8, seconds, 2.0) == steps
    index = np.array([-1, -1, *range(16), -1, -1])
    found = place_cells(index, video_blocks(kind, steps, 2, 2)).T.tolist()
    assert found == [
        [0, 1, *[2 + step for step in steps for _ in range(4)], following, following + 1],
        [0, 1, *[2, 2, 3, 3] * 4, following, following + 1],
        [0, 1, *[2, 3, 2, 3] * 4, following, following + 1],
    ]


def test_positions_of_timed_frame_pairs():
    """One text token, twice (two tokens of a time, vision_start, 2 x 2 tokens, vision_end), one text token."""
    pair = [-1, -1, -1, 0, 0, 0, 0, -1]
    index = np.array([-1, *pair, *pair, -1])
    index[index == 0] = np.arange(8)
    blocks = video_blocks("qwen3_vl", time_steps("qwen3_vl", 3, 9.0, 2.0), 2, 2)
    assert place_cells(index, blocks).T.tolist() == [
        [0, 1, 2, 3, 4, 4, 4, 4, 6, 7, 8, 9, 10, 10, 10, 10, 12, 13],
        [0, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10, 10, 11, 11, 12, 13],
        [0, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 9, 10, 11, 10, 11, 12, 13],
    ]
