"""Records by index, checked and rendered: what the index pass learns of them, and how they are written into a row."""

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
from jaxvlm.config import DataConfig, VisionConfig
from jaxvlm.data.media.images import augment, check_header, load_image
from jaxvlm.data.records import IMAGE, Record, RecordError, Turn
from jaxvlm.data.rows.packing import Extent, FitError, expand, expanded_length, fill_row, fit, measure
from jaxvlm.data.sources.load import id_hash
from jaxvlm.data.sources.mix import Mix
from jaxvlm.data.text.conversation import Renderer, Sample, drop_leading_answer

# A conversation in another order of its rounds has other words next to the image and to its start, which may cost a
# token. So many are planned for on top; an order that takes more is not used.
_ORDER_SLACK = 2


_DIGESTED_BYTES = 2**14  # of an image file: with its size they tell files apart, and duplicates are found cheaply


@dataclasses.dataclass(frozen=True)
class Facts:
    """What the index pass finds out about a record."""

    extent: Extent = Extent(0, 0, 0, 0, 0)
    shuffles: bool = False  # its rounds have a meaning in another order
    dropped_answer: bool = False  # an assistant turn stood before the first question
    id_hash: int = 0  # 64 bits, as those below
    text_hash: int = 0
    image_hashes: tuple[int, ...] = ()


class Samples:
    """Turns records into what stands in a row, by index. Small and picklable: worker processes get a copy."""

    def __init__(self, source: Mix, renderer: Renderer, config: DataConfig, vision: VisionConfig):
        self.source, self.renderer, self.config, self.vision = source, renderer, config, vision
        self.lengths = np.zeros(0, np.int32)  # positions that are planned for each record
        self.keep_images = False
        self._images: dict[tuple[int, int, bool], np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_images": {}}

    def record(self, index: int) -> Record:
        """Record `index`, from its first question on."""
        return drop_leading_answer(self.source[index])

    def inspect(self, index: int) -> Facts:
        """Checks record `index`: image headers and ends, turns, length. Decodes no image that ends as it should.

        Raises:
          RecordError: it breaks a rule, whatever the rows are.
        """
        original = self.source[index]
        record = drop_leading_answer(original)
        for image in record.images:
            check_header(image, self.vision.image_size, self.config.aspect, record.origin)
        extent = measure(self.renderer.render(record), self.vision.features_per_image)
        if not extent.supervised:
            problem = "no token of it is supervised: it has no answer"
            raise RecordError(f"{record.origin}: {problem}", record.origin, "nothing_supervised")
        text = json.dumps([[turn.role, turn.text] for turn in record.turns])
        return Facts(
            extent,
            shuffles=_shuffles(record),
            dropped_answer=record is not original,
            id_hash=id_hash(record.id),
            text_hash=_hash(text.encode()),
            image_hashes=tuple(_image_hash(image) for image in record.images),
        )

    def fingerprint(self) -> str:
        """A hash of everything on which `inspect` depends but the image files."""
        sizes = [self.vision.features_per_image, self.vision.image_size, self.config.aspect]
        told = json.dumps([self.source.fingerprint(), self.renderer.fingerprint(), sizes])
        return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()

    def planned_lengths(self, index_lengths: np.ndarray, shuffles: np.ndarray) -> np.ndarray:
        """int32[n]: the positions to plan for records of these lengths, so that all that is drawn for them fits."""
        lengths = np.minimum(index_lengths, self.config.tokens)
        if self.config.augment.shuffle_turns:
            lengths = np.where(shuffles, np.minimum(lengths + _ORDER_SLACK, self.config.tokens), lengths)
        return lengths.astype(np.int32)

    def write_row(self, batch: Batch, row: int, members: Sequence[int], seed: str | None) -> dict[int, RecordError]:
        """Writes the samples `members` into a row of an empty batch; `seed` None leaves them as they are in the file.

        Returns:
          With `config.on_bad` "skip" those of which an image passed the index pass but cannot be decoded. Such a sample
          keeps its place, so that all others keep theirs, but nothing of it is supervised, and its images are blank.

        Raises:
          RecordError: with "fail", the first of them.
        """
        pieces, pixels = [], []
        broken: dict[int, RecordError] = {}
        for index in members:
            record = self.record(index)
            random = None if seed is None else python_random.Random(f"{seed}/{index}")
            piece = expand(self._sample(record, index, random), self.vision.features_per_image)
            try:
                images = self._images_of(record, index, random)
            except RecordError as error:
                if self.config.on_bad != "skip":
                    remedy = '; with data.on_bad = "skip" a run, also one that is resumed, goes on without it'
                    raise RecordError(f"{error}{remedy}", error.origin, error.reason) from error
                broken[index] = error
                piece = dataclasses.replace(piece, loss_weights=np.zeros_like(piece.loss_weights))
                size = self.vision.image_size
                images = [np.full((size, size, 3), self.vision.pad_colour, np.uint8)] * len(record.images)
            pieces.append(piece)
            pixels += images
        fill_row(batch, row, pieces, pixels, self.vision.features_per_image)
        return broken

    def decodes(self, index: int) -> bool:
        """Whether all images of a record can be decoded."""
        try:
            self._images_of(self.record(index), index, None)
        except RecordError:
            return False
        return True

    def _images_of(self, record: Record, index: int, random: python_random.Random | None) -> list[np.ndarray]:
        # Answers are compared with those of others; training takes what is fast.
        images = [self._image(record, index, number, exact=random is None) for number in range(len(record.images))]
        if random is None:
            return images
        options = self.config.augment
        return [augment(image, random, flip=options.flip, shift=options.shift) for image in images]

    def _sample(self, record: Record, index: int, random: python_random.Random | None) -> Sample:
        if random is not None and self.config.augment.shuffle_turns and _shuffles(record):
            sample = self.renderer.render(shuffle_turns(record, random))
            if expanded_length(sample, self.vision.features_per_image) <= self.lengths[index]:
                return sample
        return self._fitted(self.renderer.render(record), record.origin)

    def _fitted(self, sample: Sample, origin: str) -> Sample:
        try:
            return fit(
                sample,
                features_per_image=self.vision.features_per_image,
                tokens=self.config.tokens,
                images=self.config.images,
            )
        except FitError as error:
            raise RecordError(f"{origin}: {error.problem}", origin, error.reason) from error

    def _image(self, record: Record, index: int, number: int, *, exact: bool) -> np.ndarray:
        image = self._images.get((index, number, exact))
        if image is None:
            image = load_image(
                record.images[number],
                self.vision.image_size,
                self.config.aspect,
                record.origin,
                pad_colour=self.vision.pad_colour,
                exact=exact,
            )
            if self.keep_images:
                self._images[index, number, exact] = image
        return image


def shuffle_turns(record: Record, random: python_random.Random) -> Record:
    """The record with its rounds (question and answer) in a new order; its image stays in the first question."""
    start = int(record.turns[0].role == "system")
    rounds = [record.turns[i : i + 2] for i in range(start, len(record.turns), 2)]
    has_image = IMAGE in rounds[0][0].text
    if has_image:
        question, answer = rounds[0]
        rounds[0] = (Turn("user", question.text.replace(IMAGE, "").strip()), answer)
    random.shuffle(rounds)
    if has_image:
        question, answer = rounds[0]
        rounds[0] = (Turn("user", f"{IMAGE}\n{question.text}"), answer)
    turns = record.turns[:start] + tuple(turn for both in rounds for turn in both)
    return dataclasses.replace(record, turns=turns)


def _shuffles(record: Record) -> bool:
    """Whether the rounds have a meaning in another order: not where several images stand between the words."""
    users = [turn.text for turn in record.turns if turn.role == "user"]
    placeholders = [text.count(IMAGE) for text in users]
    alone = users[0].replace(IMAGE, "")
    sound = bool(alone.strip()) and IMAGE not in alone  # without its image it is a question still, and holds no other
    return len(users) > 1 and placeholders[0] <= 1 and not any(placeholders[1:]) and sound


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def _image_hash(image: str | bytes) -> int:
    """Of an image's first bytes and of its size; files that differ only behind are taken for the same."""
    if isinstance(image, bytes):
        return _hash(len(image).to_bytes(8, "big") + image[:_DIGESTED_BYTES])
    path = Path(image)
    with path.open("rb") as file:
        return _hash(path.stat().st_size.to_bytes(8, "big") + file.read(_DIGESTED_BYTES))
