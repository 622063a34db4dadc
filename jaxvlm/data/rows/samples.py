"""Reads, checks and renders records by index: collects facts for the index, and writes records into rows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random as python_random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.config import DataConfig
from jaxvlm.data.cache import forget
from jaxvlm.data.media.sizes import read_size
from jaxvlm.data.records import Record, RecordError, Turn, has_videos, placeholders, sides, split_media
from jaxvlm.data.rows.packing import FitError, Piece, expand, fill_row, fit
from jaxvlm.data.sample import Sample
from jaxvlm.data.sources.load import id_hash
from jaxvlm.data.sources.mix import Mix
from jaxvlm.data.text.boxes import boxes_of, count_boxes, rewrite, shares
from jaxvlm.data.text.conversation import Renderer
from jaxvlm.data.text.turns import drop_last_question, drop_leading_answer
from jaxvlm.media import MediaLayout, Medium, Size, Video, describe

# Shuffling the rounds puts other words after the image and at the start, which may take a few tokens more. This many
# extra tokens are planned for; an order that needs more is not used.
_ORDER_SLACK = 2


INDEX = "index"  # kind of the cached index of `Facts`
_INDEX_VERSION = 10  # of the checks and the meaning of `Facts`; a cached index of another version is not used
_DIGESTED_BYTES = 2**14  # hashed per image file, together with its size: a cheap way to find duplicates


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts about a record from the index pass; none depends on the row size, nor on the model family, except for
    texts in which boxes are rewritten, and for what the renderer writes of a video's text (`VideoText`).
    """

    text: int = 0  # number of tokens except placeholders
    text_to_image: int = 0  # of these, the tokens before the last placeholder
    text_to_answer: int = 0  # of these, the tokens up to and including the first supervised one
    images_to_answer: int = 0  # placeholders before the first supervised token
    supervised: int = 0  # tokens
    sides: int = 1  # 2 for a pair: `text` and `supervised` count both sides, the `to_answer` fields only the first
    shuffles: bool = False  # its rounds make sense in another order
    dropped_answer: bool = False  # an assistant turn before the first question was dropped
    dropped_question: bool = False  # a user turn after the last answer was dropped
    boxes: int = 0  # boxes and points in its texts, where `data.boxes` says what they mean
    boxes_outside: int = 0  # of these, with a corner outside of the image
    id_hash: int = 0  # 64 bits, like the hashes below
    text_hash: int = 0
    image_hashes: tuple[int, ...] = ()
    sizes: tuple[Size, ...] = ()  # of its images and videos
    notes: tuple[str, ...] = ()  # what was not read of it, or becomes something else than its author may expect


class Samples:
    """Turns records, by index, into the contents of rows. It is small and picklable: worker processes get a copy.

    Attributes:
      lengths: int32[n]; positions that are planned for each record.
      sizes: image sizes of each record, from the index; None: they are read from the files.
      pairs: whether each record is a pair, which becomes two segments of one row.
      keep_images: whether decoded images are kept in memory.
    """

    def __init__(
        self, source: Mix, renderer: Renderer, config: DataConfig, layout: MediaLayout, *, pairs: bool = False
    ):
        self.source, self.renderer, self.config, self.layout = source, renderer, config, layout
        self.pairs = pairs
        self.lengths = np.zeros(0, np.int32)
        self.sizes: ImageSizes | None = None
        self.keep_images = False
        self._images: dict[tuple[int, int, bool], np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_images": {}}

    def record(self, index: int) -> Record:
        """Reads record `index`, without an answer before its first question or a question after its last answer."""
        record = drop_last_question(drop_leading_answer(self.source[index]))
        boxes = self.source.boxes(index)
        if not boxes or not any(boxes_of(record)):
            return record
        return rewrite(record, self.sizes_of(index, record), boxes, self.layout)

    def segments(self, record: Record) -> tuple[Record, ...]:
        """The conversations of a record, one for each segment of its row: itself, or the two sides of a pair."""
        return sides(record) if self.pairs else (record,)

    def describe(self, index: int) -> list[dict[str, Any]]:
        """Record `index` for a page, once for each of its segments, ready for JSON.

        Returns:
          `{"id": ..., "origin": ..., "images": [...], "features": [...], "turns": [[role, text], ...]}`; "features" are
          how many each image or video has. With data.boxes also "boxes": of each the number of its image, and its
          coordinates as shares of that image's width and height.
        """
        record, found = self.record(index), []
        sizes = self.sizes_of(index, record)
        about = {"id": record.id, "origin": record.origin, "images": [describe(medium) for medium in record.images]}
        features = [int(self.layout.expand(0, size)[1].sum()) for size in sizes]
        for segment in self.segments(record):
            turns = [[turn.role, turn.text] for turn in segment.turns]
            boxes = {"boxes": shares(segment, sizes, self.layout)} if self.source.boxes(index) else {}
            found.append(about | {"features": features, "turns": turns} | boxes)
        return found

    def inspect(self, index: int) -> Facts:
        """Checks record `index`: headers and ends of images, turns, length. An image with a valid end is not decoded.

        Raises:
          RecordError: it breaks a rule that does not depend on the row size.
        """
        original = self.source[index]
        asked = drop_leading_answer(original)
        record = drop_last_question(asked)
        sizes = tuple(read_size(image, record.origin) for image in record.images)
        boxes, outside, coordinates = 0, 0, self.source.boxes(index)
        if coordinates:
            boxes, outside = count_boxes(record, sizes, coordinates, self.layout)
            record = rewrite(record, sizes, coordinates, self.layout)
        samples = [self.renderer.render(segment) for segment in self.segments(record)]
        of_samples = [1 + np.flatnonzero(sample.loss_weights[1:]) for sample in samples]
        if not all(map(len, of_samples)):
            problem = "none of its tokens is supervised: it has no answer"
            raise RecordError(f"{record.origin}: {problem}", record.origin, "nothing_supervised")
        sample, supervised = samples[0], of_samples[0]
        places = np.flatnonzero(sample.is_image)
        before_answer = int(np.count_nonzero(sample.is_image[: supervised[0]]))
        text = json.dumps([[turn.role, turn.text] for turn in record.turns])
        return Facts(
            text=sum(len(sample.tokens) - len(places) for sample in samples),
            text_to_image=int(places[-1]) + 1 - len(places) if len(places) else 0,
            text_to_answer=int(supervised[0]) + 1 - before_answer,
            images_to_answer=before_answer,
            supervised=sum(map(len, of_samples)),
            sides=len(samples),
            shuffles=not self.pairs and _shuffles(record),
            dropped_answer=asked is not original,
            dropped_question=len(record.turns) < len(asked.turns),
            boxes=boxes,
            boxes_outside=outside,
            id_hash=id_hash(record.id),
            text_hash=_hash(text.encode()),
            image_hashes=tuple(_image_hash(image) for image in record.images),
            sizes=sizes,
            notes=tuple({*record.notes, *self.renderer.notes(record), *(n for s in samples for n in s.notes)}),
        )

    def fingerprint(self) -> str:
        """A hash of everything that `inspect` depends on, except the image files."""
        boxes = [part.boxes for part in self.source.parts]
        # Where boxes are rewritten, the length of a text depends on the layout.
        of_boxes = [boxes, self.layout.settings()] if any(boxes) else []
        inputs = json.dumps([self.source.fingerprint(), self.renderer.fingerprint(), self.pairs, *of_boxes])
        return hashlib.blake2b(inputs.encode(), digest_size=16).hexdigest()

    def index_key(self) -> str:
        """Under what the index is cached."""
        return hashlib.blake2b(f"{_INDEX_VERSION} {self.fingerprint()}".encode(), digest_size=16).hexdigest()

    def planned_lengths(self, index_lengths: np.ndarray, shuffles: np.ndarray) -> np.ndarray:
        """int32[n]: the positions to plan for records of these lengths, with room for shuffled rounds."""
        lengths = np.minimum(index_lengths, self.config.tokens)
        if self.config.augment.shuffle_turns:
            lengths = np.where(shuffles, np.minimum(lengths + _ORDER_SLACK, self.config.tokens), lengths)
        return lengths.astype(np.int32)

    def write_row(self, batch: Batch, row: int, members: Sequence[int], seed: str | None) -> dict[int, RecordError]:
        """Writes the samples `members` into a row of an empty batch. With `seed` None they are not augmented.

        Returns:
          The corrupt records, if `config.on_bad` is "skip": those with an image that passed the index pass but failed
          to decode. Such a sample keeps its place, so that all others keep theirs, but its loss weights are 0 and its
          images blank.

        Raises:
          RecordError: the first corrupt record, if `config.on_bad` is "fail".
        """
        pieces: list[Piece] = []
        loaded: list[np.ndarray] = []
        broken: dict[int, RecordError] = {}
        for index in members:
            record, sizes = self.record(index), self.sizes_of(index)
            random = None if seed is None else python_random.Random(f"{seed}/{index}")
            own = [expand(sample, sizes, self.layout) for sample in self._samples(record, index, random)]
            own[1:] = [dataclasses.replace(piece, shares_media=True) for piece in own[1:]]
            try:
                images = self._images_of(record, index, random)
            except RecordError as error:
                if self.config.on_bad != "skip":
                    remedy = '; with data.on_bad = "skip" a new or resumed run continues without it'
                    raise RecordError(f"{error}{remedy}", error.origin, error.reason) from error
                broken[index] = error
                own = [dataclasses.replace(p, loss_weights=np.zeros_like(p.loss_weights)) for p in own]
                images = [self.layout.blank(size) for size in sizes]
            pieces += own
            loaded += images
        fill_row(batch, row, pieces, loaded, self.layout)
        return broken

    def sizes_of(self, index: int, record: Record | None = None) -> list[Size]:
        """Returns the sizes of the images of record `index`; `record` is it, if the caller has read it.

        Raises:
          RecordError: a file cannot be read.
        """
        if self.sizes is not None:
            return self.sizes[index]
        record = self.record(index) if record is None else record
        return [read_size(image, record.origin) for image in record.images]

    def decodes(self, index: int) -> bool:
        """Returns whether all images of a record can be decoded."""
        try:
            self._images_of(self.record(index), index, None)
        except RecordError:
            return False
        return True

    def _images_of(self, record: Record, index: int, random: python_random.Random | None) -> list[np.ndarray]:
        # Evaluation decodes exactly, so that answers can be compared with other programs'; training decodes fast.
        images = [self._image(record, index, number, exact=random is None) for number in range(len(record.images))]
        for image, size in zip(images, self.sizes_of(index), strict=True):
            if self.layout.units_of(image) != self.layout.extent(size).units:
                shape = f"{size.width} x {size.height} pixels" + f" in {size.frames} frames" * size.is_video
                problem = f"one of its {'videos' if size.is_video else 'images'} is no longer {shape} as in the index"
                forget(INDEX, self.index_key())  # so that the next start reads all sizes again
                raise RecordError(f"{record.origin}: {problem}; start the run again", record.origin, "image_changed")
        if random is None:
            return images
        options = self.config.augment
        return [self.layout.augment(image, random, flip=options.flip, shift=options.shift) for image in images]

    def _samples(self, record: Record, index: int, random: python_random.Random | None) -> list[Sample]:
        if self.pairs:  # the index rejects pairs that do not fit into a row
            return [self.renderer.render(segment) for segment in self.segments(record)]
        extents = [self.layout.extent(size) for size in self.sizes_of(index)]
        if random is not None and self.config.augment.shuffle_turns and _shuffles(record):
            sample = self.renderer.render(shuffle_turns(record, random))
            if len(sample.tokens) + sum(image.positions - 1 for image in extents) <= self.lengths[index]:
                return [sample]
        try:
            fitted = fit(
                self.renderer.render(record),
                extents,
                tokens=self.config.tokens,
                units=self.config.media.units,
                unit=self.layout.unit,
            )
        except FitError as error:
            raise RecordError(f"{record.origin}: {error.problem}", record.origin, error.reason) from error
        return [fitted]

    def _image(self, record: Record, index: int, number: int, *, exact: bool) -> np.ndarray:
        image = self._images.get((index, number, exact))
        if image is None:
            image = self.layout.load(record.images[number], record.origin, exact=exact)
            if self.keep_images:
                self._images[index, number, exact] = image
        return image


class ImageSizes:
    """Image sizes of all records, looked up by record."""

    def __init__(self, counts: np.ndarray, sizes: np.ndarray):
        """Stores its arguments.

        Args:
          counts: int[n], number of images of each record.
          sizes: int32[sum of counts, 5], the fields of `Size`.
        """
        self._ends, self._sizes = np.cumsum(counts), sizes

    def __getitem__(self, record: int) -> list[Size]:
        start = int(self._ends[record - 1]) if record else 0
        return [Size(*map(int, size)) for size in self._sizes[start : int(self._ends[record])]]


def shuffle_turns(record: Record, random: python_random.Random) -> Record:
    """Shuffles the rounds (question and answer) of a record; its image or video moves to the new first question."""
    start = int(record.turns[0].role == "system")
    rounds = [record.turns[i : i + 2] for i in range(start, len(record.turns), 2)]
    question, answer = rounds[0]
    pieces = split_media(question.text, videos=has_videos(record.images))
    if len(pieces) > 1:
        rounds[0] = (Turn("user", "".join(pieces[::2]).strip()), answer)
    random.shuffle(rounds)
    if len(pieces) > 1:
        question, answer = rounds[0]
        rounds[0] = (Turn("user", f"{pieces[1]}\n{question.text}"), answer)
    turns = record.turns[:start] + tuple(turn for both in rounds for turn in both)
    return dataclasses.replace(record, turns=turns)


def _shuffles(record: Record) -> bool:
    """Whether the rounds make sense in another order; not if several images are placed within the text."""
    users, videos = [turn for turn in record.turns if turn.role == "user"], has_videos(record.images)
    counts = [len(placeholders([user], videos=videos)) for user in users]
    alone = "".join(split_media(users[0].text, videos=videos)[::2])
    # Without its image, the first question must still be a question, and contain no second placeholder.
    sound = bool(alone.strip()) and len(split_media(alone, videos=videos)) == 1
    return len(users) > 1 and counts[0] <= 1 and not any(counts[1:]) and sound


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _image_hash(image: Medium) -> int:
    """Hashes a file's first bytes and its size. Files that differ only after these bytes count as the same."""
    if isinstance(image, Video):
        files = image.source if isinstance(image.source, tuple) else (image.source,)
        return _hash(b"video" + b"".join(_image_hash(file).to_bytes(8, "big") for file in files))
    if isinstance(image, bytes):
        return _hash(len(image).to_bytes(8, "big") + image[:_DIGESTED_BYTES])
    path = Path(image)
    with path.open("rb") as file:
        return _hash(path.stat().st_size.to_bytes(8, "big") + file.read(_DIGESTED_BYTES))
