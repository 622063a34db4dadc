"""What a video becomes: which frames are taken, how large they are, and where its tokens stand.

Source: QwenLM/Qwen3-VL, qwen-vl-utils, vision_process.py (frames and sizes of the first two kinds); HF
models/qwen3_vl/video_processing_qwen3_vl.py and processing_qwen3_vl.py (all of the third). transformers 5.3 to 5.24
continue the text after a video at start + max(rows, columns), which lets it reuse numbers of the video; the weights
were trained with the largest number of all axes + 1, as here.

Axis letters:
  N frames that are taken   K tokens of a frame pair or a video
"""

from __future__ import annotations

import numpy as np

from jaxvlm.families.qwen_vl.config import VideoConfig
from jaxvlm.families.qwen_vl.positions import make_cells
from jaxvlm.families.qwen_vl.resize import FRAME_PAIR, resize_volume, smart_resize
from jaxvlm.media import MediaError

TIMED_IN_TEXT = "qwen3_vl"  # the kind that writes the time before each frame pair, and has no time axis within a video


def sample_frames(kind: str, video: VideoConfig, frames: int, seconds: float) -> np.ndarray:
    """Chooses frames at equal distances, from the first to the last.

    Args:
      kind: of `config.KINDS`; the third may take an odd number of frames.
      frames: of the file.
      seconds: its duration.

    Returns:
      int64[N], ascending.

    Raises:
      MediaError: the video has less than two frames.
    """
    if frames < FRAME_PAIR:
        raise MediaError("video_short", f"a video has {frames} frame, at least {FRAME_PAIR} are needed; use an image")
    if kind == TIMED_IN_TEXT:
        count = min(max(int(seconds * video.fps), video.min_frames), video.max_frames, frames)
    else:
        wanted = min(max(seconds * video.fps, video.min_frames), video.max_frames, frames)
        count = int(wanted // FRAME_PAIR) * FRAME_PAIR
    return np.linspace(0, frames - 1, count).round().astype(np.int64)


def resize_frames(kind: str, video: VideoConfig, taken: int, height: int, width: int, factor: int) -> tuple[int, int]:
    """Height and width of all frames, in pixels; the limits are of each frame, for the third kind of all together.

    Args:
      taken: N.
      height: of the file, in pixels, like `width`.
      factor: pixels along each side of a token.

    Raises:
      MediaError: one side is more than 200 times the other.
    """
    if kind == TIMED_IN_TEXT:
        return resize_volume(taken, height, width, factor, video.min_pixels, video.max_pixels)
    return smart_resize(height, width, factor, video.min_pixels, video.max_pixels)


def count_pairs(taken: int) -> int:
    """Frame pairs of N frames; the last frame of an odd number is repeated."""
    return -(-taken // FRAME_PAIR)


def time_steps(kind: str, taken: int, seconds: float, tokens_per_second: float) -> list[int]:
    """Position of each frame pair on the time axis, from 0.

    "qwen2_vl" counts pairs. "qwen2_5_vl" counts time, in `tokens_per_second` steps for a second, rounded down. Each
    pair of "qwen3_vl" is an image of its own.

    Args:
      taken: N.
      seconds: duration of the file.
    """
    pairs = range(count_pairs(taken))
    if kind == "qwen2_vl":
        return list(pairs)
    if kind == "qwen2_5_vl":
        seconds_per_pair = FRAME_PAIR * seconds / taken
        return [int(pair * seconds_per_pair * tokens_per_second) for pair in pairs]
    return [0 for _ in pairs]


def video_blocks(kind: str, steps: list[int], rows: int, columns: int) -> list[np.ndarray]:
    """The runs of tokens of a video without text between them, for `place_cells`.

    Args:
      steps: from `time_steps`.
      rows: of tokens, like `columns`.

    Returns:
      int32[K, 3] of the whole video, or of each frame pair for the third kind.
    """
    if kind == TIMED_IN_TEXT:
        return [make_cells([step], rows, columns) for step in steps]
    return [make_cells(steps, rows, columns)]


def frame_times(indices: np.ndarray, fps: float) -> list[float]:
    """Seconds in the middle of each frame pair.

    Args:
      indices: int64[N], from `sample_frames`.
      fps: frames of the file a second.
    """
    times = indices / fps
    times = np.append(times, times[-1:].repeat(-len(times) % FRAME_PAIR))
    return times.reshape(-1, FRAME_PAIR).mean(axis=1).tolist()


def time_text(seconds: float) -> str:
    """The text in front of a frame pair of the third kind; vision_start, its tokens and vision_end follow."""
    return f"<{seconds:.1f} seconds>"
