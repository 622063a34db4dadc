"""Media of Qwen-VL: images at their own size, as patches of which a square of neighbours is one token.

Axis letters:
  N frames of a loaded image or video   Y, X pixels   T frames after joining F of them to a patch   P patches
  R, C rows and columns of tokens (groups of patches)   M merge size, patches along each side of a group
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import random as python_random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxvlm.batch import ArraySpec
from jaxvlm.data.media import images
from jaxvlm.data.media.encoding import encode
from jaxvlm.data.media.video import read_frames, read_video_size
from jaxvlm.data.records import RecordError
from jaxvlm.families.qwen_vl.config import QwenVLConfig, QwenVLMedia, VideoConfig
from jaxvlm.families.qwen_vl.patches import Patches
from jaxvlm.families.qwen_vl.positions import place_cells
from jaxvlm.families.qwen_vl.resize import FRAME_PAIR, smart_resize
from jaxvlm.families.qwen_vl.time_tokens import TimeTokens, make_time_tokens
from jaxvlm.families.qwen_vl.videos import (
    TIMED_IN_TEXT,
    frame_times,
    resize_frames,
    sample_frames,
    time_steps,
    video_blocks,
)
from jaxvlm.media import MediaError, MediaExtent, MediaLayout, Medium, Picture, Size, Video


class PatchLayout(MediaLayout):
    """Every image is resized once, by `smart_resize`, and cut into patches. A loaded image is uint8[N, Y, X, 3]."""

    unit, position_axes = "patches", 3
    no_videos = "the recipe does not enable; set config.data.media.video (configs.qwen_vl.video)"

    def __init__(self, model: QwenVLConfig, media: QwenVLMedia):
        """Stores what it needs of a recipe."""
        self.media, self.kind = media, model.kind
        self.tokens_per_second = model.tokens_per_second
        self.takes_videos = media.video is not None
        self._times: TimeTokens | None = None  # of `with_tokenizer`, for videos of the third kind
        self.patch, self.merge, self.window = model.vision.patch_size, model.projector.merge_size, model.vision.window
        self.factor = self.patch * self.merge  # pixels along each side of a token
        self.depth = 1 if media.video is None else FRAME_PAIR  # frames of a patch
        self.mean_colour = tuple(round(255 * mean) for mean in model.vision.image_mean)
        # An image is enlarged to min_pixels or more; one that is reduced may lose half of max_pixels to rounding.
        area = self.factor**2
        self.least_positions = max(1, min(-(-media.min_pixels // area), media.max_pixels // (2 * area)))
        self.least_units = self.least_positions * self.merge**2

    def with_tokenizer(self, tokenizer: Any) -> PatchLayout:
        """With the ids of times and of the tokens around frame pairs, if videos of the third kind are taken."""
        if not self.takes_videos or self.kind != TIMED_IN_TEXT:
            return self
        made = copy.copy(self)
        made._times, made.video_text = make_time_tokens(tokenizer)
        return made

    def settings(self) -> dict[str, Any]:
        """Limits of areas and frames, and what sides are multiples of."""
        limits = {"factor": self.factor, "min_pixels": self.media.min_pixels, "max_pixels": self.media.max_pixels}
        video = self.media.video
        return limits | ({} if video is None else {"kind": self.kind, "video": dataclasses.asdict(video)})

    def measure(self, size: Size) -> MediaExtent:
        """A position for each token and a unit for each patch; raises if an image is longer than 200:1."""
        rows, columns = self._grid(size)
        tokens = len(self._steps(size)) * rows * columns
        text = sum(len(before) + 1 for before in self._texts(size))
        return MediaExtent(tokens + text, tokens * self.merge**2)

    def expand(self, placeholder: int, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """The placeholder for each token; around the tokens of a frame pair, the third kind has text."""
        texts, (rows, columns) = self._texts(size), self._grid(size)
        if not texts:
            return super().expand(placeholder, size)
        assert self._times is not None  # else there are no texts
        pads, ids, is_feature = rows * columns, [], []
        for before in texts:
            ids += [*before, *[placeholder] * pads, self._times.end]
            is_feature += [*[False] * len(before), *[True] * pads, False]
        return np.array(ids, np.int32), np.array(is_feature)

    def box_space(self, size: Size) -> tuple[int, int]:
        """Pixels of the resized image for Qwen2.5-VL, thousandths for the others."""
        return self.resized(size) if self.kind == "qwen2_5_vl" else (1000, 1000)

    def resized(self, size: Size) -> tuple[int, int]:
        """Width and height of the image, or of each frame."""
        rows, columns = self._grid(size)
        return columns * self.factor, rows * self.factor

    def spec(self, rows: int, units: int) -> Patches:
        """Patches of `depth` frames."""
        return Patches(
            ArraySpec.of((rows, units, self.depth, self.patch, self.patch, 3), np.uint8),
            ArraySpec.of((rows, units, 2), np.int32),
            ArraySpec.of((rows, units), np.int32),
            ArraySpec.of((rows, units, 2), np.int32),
        )

    def load(self, source: Medium, origin: str, *, exact: bool) -> np.ndarray:
        """uint8[N, Y, X, 3], the resized image or frames; images bit-equal to HF's Qwen2VLImageProcessorPil.

        So also where `exact` is false: Pillow chooses which axis it resizes first, and a faster resizer that takes the
        other one is up to 32 levels off.
        """
        if isinstance(source, Video):
            return self._load_video(source, origin)
        image = images.decode(source, origin)
        with _at(origin):
            height, width = self._target(image.height, image.width)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))[None]

    def _load_video(self, source: Video, origin: str) -> np.ndarray:
        size = read_video_size(source, origin)
        with _at(origin):
            frames, (rows, columns) = self._frames(size), self._grid(size)
        shape = (columns * self.factor, rows * self.factor)

        def resize(pixels_YXC: np.ndarray) -> np.ndarray:
            return np.asarray(Image.fromarray(pixels_YXC).resize(shape, Image.Resampling.BICUBIC))

        return read_frames(source, frames, origin, change=resize)

    def blank(self, size: Size) -> np.ndarray:
        """The mean colour, about 0 after normalisation."""
        rows, columns = self._grid(size)
        frames = len(self._frames(size)) if size.is_video else 1
        return np.full((frames, rows * self.factor, columns * self.factor, 3), self.mean_colour, np.uint8)

    def augment(self, loaded: np.ndarray, random: python_random.Random, *, flip: bool, shift: int) -> np.ndarray:
        """Mirrored and moved, all frames alike, see `images.augment`."""
        varied = images.augment(np.moveaxis(loaded, 0, -1), random, flip=flip, shift=shift)
        return np.moveaxis(varied, -1, 0)

    def units_of(self, loaded: np.ndarray) -> int:
        """Patches of all frames."""
        frames, height, width, _ = loaded.shape
        return -(-frames // self.depth) * (height // self.patch) * (width // self.patch)

    def write(self, media: Patches, row: int, at: int, loaded: np.ndarray) -> np.ndarray:
        """Writes the patches frame by frame, and within a frame in the order of `order_groups`."""
        pixels_TGMMFYXC = self._cut(loaded)
        T, R, C = pixels_TGMMFYXC.shape[0], loaded.shape[1] // self.factor, loaded.shape[2] // self.factor
        order, per_frame = order_groups(R, C, self.window // self.merge), R * C * self.merge**2
        here = np.s_[row, at : at + T * per_frame]
        media.pixels[here] = pixels_TGMMFYXC[:, order].reshape(-1, *media.pixels.shape[2:])
        media.places[here] = np.tile(self._places(R, C)[order].reshape(-1, 2), (T, 1))
        media.frames[here] = media.frames[row].max(initial=0) + 1 + np.repeat(np.arange(T), per_frame)
        media.grids[here] = R * self.merge, C * self.merge
        features = np.arange(T)[:, None] * (R * C) + np.argsort(order)
        return (at // self.merge**2 + features.reshape(-1)).astype(np.int32)

    def positions(self, image_index: np.ndarray, sizes: Sequence[Size]) -> np.ndarray:
        """int32[L, 3]: time, row and column, see `place_cells`."""
        blocks = (video_blocks(self.kind, self._steps(size), *self._grid(size)) for size in sizes)
        return place_cells(image_index, [block for of_medium in blocks for block in of_medium])

    def preview(self, media: Patches, row: int) -> list[Picture]:
        """A picture for each frame of the row, rebuilt from its patches; of two frames in a patch, the first."""
        pictures, patch, frames = [], self.patch, np.asarray(media.frames[row])
        for frame in range(1, int(frames.max(initial=0)) + 1):
            own = np.flatnonzero(frames == frame)
            places, (rows, columns) = np.asarray(media.places[row][own]), np.asarray(media.grids[row][own[0]])
            pixels = np.empty((rows, patch, columns, patch, 3), np.uint8)
            pixels[places[:, 0], :, places[:, 1]] = np.asarray(media.pixels[row][own])[:, 0]
            groups = own[:: self.merge**2] // self.merge**2
            raster = np.lexsort(places[:: self.merge**2].T[::-1])
            pictures.append(Picture(pixels.reshape(rows * patch, columns * patch, 3), groups[raster].astype(np.int32)))
        return pictures

    def store(self, source: Medium, origin: str, jpeg: int) -> bytes | Video:
        """A PNG or JPEG of the resized image; of the original one if the resized one would be resized again.

        The second is so at extreme ratios, and where the limits are close together. Sides beyond what a JPEG can have
        make a PNG.
        """
        if isinstance(source, Video):
            return self._store_video(source, origin, jpeg)
        image = images.decode(source, origin)
        with _at(origin):
            height, width = self._target(image.height, image.width)
        if self._is_final(height, width):
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return encode(image, jpeg)

    def _store_video(self, source: Video, origin: str, jpeg: int) -> Video:
        """The frames that are taken, with their numbers, so that the same ones are taken again at the same times."""
        size, frames = read_video_size(source, origin), self._load_video(source, origin)
        if self._grid(size._replace(height=frames.shape[1], width=frames.shape[2])) != self._grid(size):
            problem = "its frames would be resized again when they are read; train on the video's own file"
            raise RecordError(f"{origin}: {problem}", origin, "video_not_prepared")
        files = tuple(encode(Image.fromarray(frame), jpeg) for frame in frames)
        return Video(files, size.fps, tuple(self._frames(size).tolist()))

    def problems(self, shift: int) -> list[str]:
        """Reports limits that contradict each other, units that do not hold a whole image, and too large a shift."""
        group, units = self.merge**2, self.media.units
        found = _limit_problems("data.media", self.media, self.factor**2)
        if self.window % self.merge:
            found.append(f"model.vision.window = {self.window}, expected a multiple of merge_size = {self.merge}")
        if units % group:
            found.append(f"data.media.units = {units}, expected a multiple of {group}, the patches of a token")
        elif 0 < units < self.least_units and not found:
            found.append(
                f"data.media.units = {units}, expected at least {self.least_units}, the patches of the smallest image "
                f"that data.media.min_pixels = {self.media.min_pixels} allows"
            )
        if shift >= self.factor:
            found.append(f"data.augment.shift = {shift}, expected less than {self.factor}, the shortest side in pixels")
        return found + ([] if self.media.video is None else _video_problems(self.media.video, self.factor**2))

    def _grid(self, size: Size) -> tuple[int, int]:
        """Rows and columns of tokens, of an image or of each frame."""
        if size.is_video and self.media.video is not None:
            taken = len(self._frames(size))
            height, width = resize_frames(self.kind, self.media.video, taken, size.height, size.width, self.factor)
        else:
            height, width = self._target(size.height, size.width)
        return height // self.factor, width // self.factor

    def _frames(self, size: Size) -> np.ndarray:
        """int64[N], the frames that are taken of a video."""
        assert self.media.video is not None  # else `extent` has refused it
        return sample_frames(self.kind, self.media.video, size.frames, size.seconds)

    def _steps(self, size: Size) -> list[int]:
        """Positions on the time axis, of an image or of each pair of frames."""
        if not size.is_video:
            return [0]
        return time_steps(self.kind, len(self._frames(size)), size.seconds, self.tokens_per_second)

    def _texts(self, size: Size) -> list[list[int]]:
        """The ids before each frame pair of a video of the third kind, one more follows it; []: there is no text."""
        if not size.is_video or self.kind != TIMED_IN_TEXT:
            return []
        assert self._times is not None  # of `with_tokenizer`
        times = frame_times(self._frames(size), size.fps)
        return [self._times.before(seconds, is_first=not pair) for pair, seconds in enumerate(times)]

    def _target(self, height: int, width: int) -> tuple[int, int]:
        return smart_resize(height, width, self.factor, self.media.min_pixels, self.media.max_pixels)

    def _is_final(self, height: int, width: int) -> bool:
        try:
            return self._target(height, width) == (height, width)
        except MediaError:  # 41 x 8200 pixels become 28 x 8204
            return False

    def _cut(self, loaded_NYXC: np.ndarray) -> np.ndarray:
        """uint8[T, R * C, M, M, F, patch, patch, 3]; the last frame is repeated until its patch is full."""
        missing = -len(loaded_NYXC) % self.depth
        frames = np.concatenate([loaded_NYXC, *[loaded_NYXC[-1:]] * missing]) if missing else loaded_NYXC
        N, height, width, _ = frames.shape
        T, R, C, M, p = N // self.depth, height // self.factor, width // self.factor, self.merge, self.patch
        pixels = frames.reshape(T, self.depth, R, M, p, C, M, p, 3).transpose(0, 2, 5, 3, 6, 1, 4, 7, 8)
        return pixels.reshape(T, R * C, M, M, self.depth, p, p, 3)

    def _places(self, R: int, C: int) -> np.ndarray:
        """int32[R * C, M * M, 2]: row and column of the patches of each group."""
        places = np.indices((R * self.merge, C * self.merge), np.int32).reshape(2, R, self.merge, C, self.merge)
        return places.transpose(1, 3, 2, 4, 0).reshape(R * C, self.merge**2, 2)


def order_groups(rows: int, columns: int, window: int) -> np.ndarray:
    """The groups of a frame (numbered in raster order) window by window, so that a window's groups are contiguous.

    Windows of 2 in a frame of 2 rows and 3 columns::

        0 1 | 2
        3 4 | 5      order [0 1 3 4 2 5]

    Args:
      rows: of groups, like `columns`.
      window: groups along each side of a window, windows at the edges are smaller; 0: the order stays.

    Returns:
      int64[rows * columns].
    """
    if not window:
        return np.arange(rows * columns)
    row, column = np.indices((rows, columns)).reshape(2, -1)
    return np.lexsort((column, row, column // window, row // window))


def make_layout(model: QwenVLConfig, media: QwenVLMedia) -> PatchLayout:
    """The layout of a recipe."""
    return PatchLayout(model, media)


@contextlib.contextmanager
def _at(origin: str) -> Iterator[None]:
    """Adds the record's place to what is wrong with one of its media."""
    try:
        yield
    except MediaError as error:
        raise RecordError(f"{origin}: {error.problem}", origin, error.reason) from error


def _limit_problems(name: str, limits: QwenVLMedia | VideoConfig, area: int) -> list[str]:
    """`area`: of the smallest image or video, in pixels."""
    found = []
    if limits.min_pixels < 1:
        found.append(f"{name}.min_pixels = {limits.min_pixels}, expected 1 or more")
    if limits.max_pixels < area:
        found.append(f"{name}.max_pixels = {limits.max_pixels}, expected {area} or more, one token")
    elif limits.min_pixels > limits.max_pixels:
        found.append(
            f"{name}.min_pixels = {limits.min_pixels}, expected at most {name}.max_pixels = {limits.max_pixels}"
        )
    return found


def _video_problems(video: VideoConfig, area: int) -> list[str]:
    name = "data.media.video"
    found = _limit_problems(name, video, area)
    if not video.fps > 0:
        found.append(f"{name}.fps = {video.fps}, expected more than 0")
    if video.min_frames < FRAME_PAIR or video.min_frames % FRAME_PAIR:
        found.append(f"{name}.min_frames = {video.min_frames}, expected an even number of 2 or more")
    if video.max_frames < video.min_frames or video.max_frames % FRAME_PAIR:
        found.append(
            f"{name}.max_frames = {video.max_frames}, expected an even number of at least {name}.min_frames = "
            f"{video.min_frames}"
        )
    return found
