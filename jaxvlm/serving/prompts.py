"""From requests to prompts: the text on the caller's thread, the images in a pool.

Axis letters:
  B rows, here one   L tokens of a prompt   T token positions of a row
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.data.media.sizes import read_size
from jaxvlm.data.records import Record, RecordError
from jaxvlm.data.rows.packing import Piece, expand
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.errors import UserError
from jaxvlm.media import MediaError, MediaLayout, Medium, Size, Video
from jaxvlm.serving.caches import PromptKey
from jaxvlm.serving.requests import Request, RequestError


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A rendered request.

    Attributes:
      piece: its tokens, with features in the order of the images.
      counts: features of each image.
      max_new_tokens: the length limit of the answer.
    """

    record: Record
    piece: Piece
    counts: tuple[int, ...]
    max_new_tokens: int

    @property
    def length(self) -> int:
        """Tokens, features among them."""
        return len(self.piece.tokens)

    @property
    def next_position(self) -> int:
        """The position of the first token of the answer, see `VLM.next_position`."""
        return int(self.piece.positions.max(initial=-1)) + 1

    def key(self, hashes: tuple[bytes, ...]) -> PromptKey:
        """What others are compared with; `hashes` are those of the images."""
        ends = np.cumsum(self.counts, dtype=np.int64)
        images = np.searchsorted(ends, self.piece.image_index, side="right").astype(np.int32)
        return PromptKey(self.piece.tokens, np.where(self.piece.image_index < 0, -1, images), hashes)

    def batch(self, begin: int, end: int, size: int) -> Batch:
        """Tokens from `begin` to `end` as a row of `size`; its `image_index` counts in the features of the prompt."""
        here = slice(begin, end)

        def row(values: np.ndarray, rest: int) -> np.ndarray:
            padded = np.full((1, size, *values.shape[1:]), rest, np.int32)
            padded[0, : end - begin] = values[here]
            return padded

        piece = self.piece
        segments = row(np.ones(self.length, np.int32), 0)
        index = row(piece.image_index, -1)
        return Batch(row(piece.tokens, 0), None, None, row(piece.positions, 0), segments, None, index)


@dataclasses.dataclass(frozen=True, eq=False)
class Loaded:
    """An image of a prompt.

    Attributes:
      features: what was cached of it; None: nothing was.
      array: see `MediaLayout.load`; None if there are features.
    """

    hash: bytes
    features: Any
    array: np.ndarray | None


class PromptBuilder:
    """Builds the prompts of requests, for one renderer and layout. All methods may be called on any thread."""

    def __init__(self, renderer: Renderer, layout: MediaLayout, tokens: int, max_images: int):
        """Takes prompts that have room for an answer in `tokens`, with at most so many images and videos."""
        self._renderer, self._layout, self._tokens, self._max_images = renderer, layout, tokens, max_images
        self._lock = threading.Lock()  # tokenizers are not safe in several threads
        self._settings = json.dumps(layout.settings(), sort_keys=True, default=str).encode()

    def build(self, request: Request) -> Prompt:
        """Renders a request; of its images only the headers are read.

        Raises:
          RequestError: "invalid_image" (its `param` is "images[k]"), "invalid_conversation" or
            "context_length_exceeded".
        """
        record = request.record
        sizes = self._sizes(record)
        try:
            with self._lock:
                sample = self._renderer.render_prompt(record)
        except RecordError as error:
            raise RequestError(str(error), "invalid_conversation") from error
        piece = expand(sample, sizes, self._layout)
        counts = tuple(int(self._layout.expand(0, size)[1].sum()) for size in sizes)
        return Prompt(record, piece, counts, self._limit(request, len(piece.tokens), sum(counts)))

    def _sizes(self, record: Record) -> list[Size]:
        if len(record.images) > self._max_images:
            raise RequestError(
                f"{record.origin}: {len(record.images)} images, a request may have at most {self._max_images}",
                "invalid_image",
                f"images[{self._max_images}]",
            )
        sizes = []
        for number, image in enumerate(record.images):
            try:
                sizes.append(read_size(image, record.origin))
                self._layout.extent(sizes[-1])
            except (UserError, MediaError) as error:
                raise _invalid(record, number, error) from error
        return sizes

    def _limit(self, request: Request, prompt: int, features: int) -> int:
        room = self._tokens - prompt
        wanted = request.max_new_tokens
        if room < 1:
            raise RequestError(
                f"the model's context is {self._tokens} tokens, the prompt has {prompt} ({features} of images), and "
                "an answer needs one at least; shorten the conversation",
                "context_length_exceeded",
                "messages",
            )
        # Clients ask for far longer answers than they expect.
        return min(room, wanted or room)

    def load(self, record: Record, number: int, cached: Callable[[bytes], Any]) -> Loaded:
        """Hashes an image of a record, and decodes it unless its features are cached.

        Args:
          cached: the features of the image with a hash, or None.

        Raises:
          RequestError: it is broken.
        """
        try:
            found = self._hash(record.images[number])
            features = cached(found)
            if features is not None:
                return Loaded(found, features, None)
            return Loaded(found, None, self._layout.load(record.images[number], record.origin, exact=True))
        except (UserError, MediaError, OSError) as error:
            raise _invalid(record, number, error) from error

    def _hash(self, medium: Medium) -> bytes:
        """SHA-256 of all that the features of an image or a video depend on, except the weights."""
        made = hashlib.sha256(self._settings)
        for part in _contents(medium):
            made.update(f"{len(part)} ".encode())
            made.update(part)
        return made.digest()


def _contents(medium: Medium) -> list[bytes]:
    if isinstance(medium, bytes):
        return [medium]
    if isinstance(medium, Video):
        sources = medium.source if isinstance(medium.source, tuple) else (medium.source,)
        settings = f"video {medium.is_list} {medium.fps} {medium.numbers}".encode()
        return [settings, *(part for source in sources for part in _contents(source))]
    with open(medium, "rb") as file:
        return [file.read()]


def _invalid(record: Record, number: int, error: Exception) -> RequestError:
    where = "" if str(error).startswith(record.origin) else f"{record.origin}: "
    return RequestError(f"{where}{error}", "invalid_image", f"images[{number}]")


def load_all(
    pool: ThreadPoolExecutor, builder: PromptBuilder, record: Record, cached: Callable[[bytes], Any]
) -> list[Future[Loaded]]:
    """Starts to load the images of a record."""
    return [pool.submit(builder.load, record, number, cached) for number in range(len(record.images))]
