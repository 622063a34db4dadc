"""The contract between data and a family: what an image or a video becomes, on the NumPy side.

A row has a budget of T tokens and of U media units. The family defines the unit: an image slot, a tile, a patch.
Data code knows media only through `MediaLayout`, and never its family.

Axis letters:
  B rows   L tokens of a sample   T token positions of a row   U media units of a row   K features of an image
"""

from __future__ import annotations

import abc
import dataclasses
import random as python_random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DEFAULT_FPS = 2.0  # of a list of frames, if the data does not say


@dataclasses.dataclass(frozen=True)
class Video:
    """A video of a record: one file, or a list of frame files."""

    source: str | bytes | tuple[str | bytes, ...]  # a path, the bytes of a file, or the frames in order
    fps: float = DEFAULT_FPS  # frames a second of the list; a file has times of its own
    # The frames of a list, ascending, if it has only some of its video's, of which it has the last; (): it has all.
    numbers: tuple[int, ...] = ()

    @property
    def is_list(self) -> bool:
        """Whether its source is a list of frame files."""
        return isinstance(self.source, tuple)


# A path of an image file or its bytes, or a video.
Medium = str | bytes | Video


def describe(medium: Medium) -> str:
    """A medium in a few words, for pages and messages: its path, or its number of bytes or frames."""
    if not isinstance(medium, Video):
        return medium if isinstance(medium, str) else f"{len(medium)} bytes"
    if not isinstance(medium.source, tuple):
        return describe(medium.source)
    first = f", the first {describe(medium.source[0])}" if medium.source else ""
    return f"{len(medium.source)} frames at {medium.fps:g} a second{first}"


def picture_files(media: Sequence[Medium]) -> list[str | None]:
    """For each medium the absolute path of an image file that shows it: its own, or the first frame of a list.

    None: there is no such file, as of images within the data's own files and of video files.
    """
    found: list[str | None] = []
    for medium in media:
        if isinstance(medium, Video):
            medium = medium.source[0] if isinstance(medium.source, tuple) and medium.source else b""
        found.append(str(Path(medium).absolute()) if isinstance(medium, str) else None)
    return found


class Size(NamedTuple):
    """The size of an image or a video as displayed (EXIF orientation or display matrix applied), in pixels."""

    height: int
    width: int
    frames: int = 1  # of a video, in its source
    rate: int = 0  # of a video, this many frames...; 0: it is an image
    per: int = 1  # ...in this many seconds: 30000 in 1001 are 29.97 a second

    @property
    def is_video(self) -> bool:
        """Whether it is the size of a video."""
        return self.rate > 0

    @property
    def fps(self) -> float:
        """Frames of a video a second."""
        return self.rate / self.per

    @property
    def seconds(self) -> float:
        """The duration of a video."""
        return self.frames / self.fps


class MediaExtent(NamedTuple):
    """The size of an image or a video in a row."""

    positions: int  # of the T token positions
    units: int  # of the U media units


class VideoText(NamedTuple):
    """The text of a video that the renderer writes or leaves out, since the rest is what `MediaLayout.expand` writes.

    Qwen3-VL writes "<0.3 seconds>" and tokens around each frame pair, in place of the tokens around a whole video::

        chat template  Look: <|vision_start|><|video_pad|><|vision_end|>
        renderer       Look: <                  and the placeholder: the tokenizer may have a token " <"
        expand         0.3 seconds>  <|vision_start|>  features  <|vision_end|>  <1.3 seconds>  ...
    """

    before: str  # tokens around the placeholder that a chat template writes and the renderer leaves out
    after: str
    lead: str  # what a video begins with, tokenized together with the text before it


class Picture(NamedTuple):
    """An image, or a frame of a video, as the model sees it, for pages that show batches."""

    pixels: np.ndarray  # uint8[Y, X, 3]
    features: np.ndarray  # int32[K]; which of the row's features are its own, in the order of their positions


class MediaError(Exception):
    """An image or a video that no row of this layout can hold.

    Attributes:
      reason: the short name under which the ledger counts it.
      problem: one clause that describes the fault, with the value found.
    """

    def __init__(self, reason: str, problem: str):
        super().__init__(problem)
        self.reason, self.problem = reason, problem


class MediaLayout(abc.ABC):
    """How media are measured, loaded, written into a row, placed and shown. Small and picklable.

    Attributes:
      unit: what a media unit is called, in the plural: "images", "tiles", "patches".
      position_axes: numbers that the decoder needs for a position: 1, or 3 for time, row and column.
      least_positions: the fewest token positions that any image takes.
      least_units: the media units of that image.
      takes_videos: whether it measures and loads videos; otherwise `extent` refuses them.
      no_videos: why it takes none, and what to do, for that message.
      video_text: what the renderer has to know of the text within a video; None: a video has none.
    """

    unit: str
    position_axes: int = 1
    takes_videos: bool = False
    no_videos: str = "models of this family do not take; train a family that takes videos, such as Qwen-VL"
    video_text: VideoText | None = None
    least_positions: int
    least_units: int = 1

    def with_tokenizer(self, tokenizer: Any) -> MediaLayout:
        """The layout with the ids of the text that it adds to media; whatever renders or measures records needs it.

        Args:
          tokenizer: a fast tokenizer of transformers.

        Raises:
          UserError: the tokenizer lacks a token.
        """
        return self

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """Everything on which `load` depends, ready for JSON: equal settings give equal arrays."""

    def extent(self, size: Size) -> MediaExtent:
        """The size of a medium in a row: `measure`, after a check that the layout takes its kind.

        Raises:
          MediaError: the layout takes no videos, or no row can hold a medium of this size.
        """
        if size.is_video and not self.takes_videos:
            raise MediaError(
                "video_not_supported",
                f"it has a video, which {self.no_videos}, or leave such records out",
            )
        return self.measure(size)

    @abc.abstractmethod
    def measure(self, size: Size) -> MediaExtent:
        """The size of an image, or of a video if the layout takes them, in a row; other code calls `extent`.

        Raises:
          MediaError: no row can hold an image of this size.
        """

    def box_space(self, size: Size) -> tuple[int, int] | None:
        """The width and height to which coordinates in texts count on an image of a size; None: the family has none."""
        return None

    def resized(self, size: Size) -> tuple[int, int]:
        """Width and height in pixels of an image of a size as the model gets it; where `box_space` is not None."""
        raise NotImplementedError

    @abc.abstractmethod
    def spec(self, rows: int, units: int) -> Any:
        """The struct `Batch.media`: a NamedTuple of `ArraySpec`s, each with `rows` first."""

    @abc.abstractmethod
    def load(self, source: Medium, origin: str, *, exact: bool) -> np.ndarray:
        """Decodes and preprocesses a medium into the array that `write` takes.

        Args:
          source: path of an image file, its bytes, or a `Video` if the layout takes videos.
          origin: its record's place, for messages.
          exact: bit-equal to the family's original processor; otherwise a faster resize within 2 levels may be used.

        Raises:
          RecordError: the file is missing, corrupt or too large.
        """

    @abc.abstractmethod
    def blank(self, size: Size) -> np.ndarray:
        """What a row contains in place of a corrupt image or video of this size."""

    def augment(self, loaded: np.ndarray, random: python_random.Random, *, flip: bool, shift: int) -> np.ndarray:
        """A random variant of a loaded image (see `DataConfig.augment`); the same by default."""
        return loaded

    def expand(self, placeholder: int, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that represent an image or a video in the sequence.

        Args:
          placeholder: the id of its placeholder.

        Returns:
          int32[L] ids, and bool[L], which of them are features; the others are text that is never supervised.
        """
        positions = self.measure(size).positions
        return np.full(positions, placeholder, np.int32), np.ones(positions, bool)

    @abc.abstractmethod
    def units_of(self, loaded: np.ndarray) -> int:
        """The media units that a loaded image fills; those of `measure` for its size."""

    @abc.abstractmethod
    def write(self, media: Any, row: int, at: int, loaded: np.ndarray) -> np.ndarray:
        """Writes a loaded image into a row of NumPy media, after the `at` units that are already written.

        Returns:
          int32[K], which of the row's features belong to the image's feature positions, in their order.
        """

    def positions(self, image_index: np.ndarray, sizes: Sequence[Size]) -> np.ndarray:
        """Position ids of a sample.

        Args:
          image_index: int32[L]; k at the sample's k-th feature, -1 at text.
          sizes: of the sample's images.

        Returns:
          int32[L], or int32[L, 3] where `position_axes` is 3.
        """
        return np.arange(len(image_index), dtype=np.int32)

    @abc.abstractmethod
    def preview(self, media: Any, row: int) -> list[Picture]:
        """The pictures in a row, in their order; empty slots may be among them."""

    @abc.abstractmethod
    def store(self, source: Medium, origin: str, jpeg: int) -> bytes | Video:
        """What `inspect_data prepare` writes: `load` and `measure` give the same for it as for the source.

        An image becomes the bytes of an image file; a video becomes a `Video` of bytes: the frames that `load` takes.

        Args:
          jpeg: quality from 1 to 95; 0: PNG, which keeps every pixel.

        Raises:
          RecordError: as `load`.
        """

    def problems(self, shift: int) -> list[str]:
        """The invalid data settings of a recipe, as messages; `shift` is `data.augment.shift`."""
        return []
