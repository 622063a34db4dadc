"""Records by index, checked and rendered: what the index pass learns of them, and how they are written into a row."""

from __future__ import annotations

import dataclasses
import random as python_random
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxvlm.batch import Batch
from jaxvlm.config import DataConfig, VisionConfig
from jaxvlm.data.conversation import Renderer, Sample, drop_leading_answer
from jaxvlm.data.images import augment, check_header, load_image
from jaxvlm.data.packing import FitError, check_row, expand, expanded_length, fill_row, fit
from jaxvlm.data.records import IMAGE, Record, RecordError, Turn
from jaxvlm.data.sources import Source, is_heldout

# A conversation in another order of its rounds has other words next to the image and to its start, which may cost a
# token. So many are planned for on top; an order that takes more is not used.
_ORDER_SLACK = 2


@dataclasses.dataclass(frozen=True)
class Entry:
    """What the index pass finds out about a record."""

    length: int = 0  # positions it takes in a row; 0 if rejected
    images: int = 0
    supervised: int = 0  # tokens
    heldout: bool = False
    truncated: bool = False
    dropped_answer: bool = False  # an assistant turn stood before the first question
    error: RecordError | None = None


class Samples:
    """Turns records into what stands in a row, by index. Small and picklable: worker processes get a copy."""

    def __init__(self, source: Source, renderer: Renderer, config: DataConfig, vision: VisionConfig):
        self.source, self.renderer, self.config, self.vision = source, renderer, config, vision
        self.lengths = np.zeros(0, np.int32)  # from the index pass
        self.keep_images = False
        self._images: dict[tuple[int, int], np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_images": {}}

    def record(self, index: int) -> Record:
        """Record `index`, from its first question on."""
        return drop_leading_answer(self.source[index])

    def inspect(self, index: int) -> Entry:
        """Checks record `index`: image headers, turns, length. Decodes nothing.

        Raises:
          UserError: rows are too short for any image.
        """
        heldout = False
        try:
            original = self.source[index]
            heldout = is_heldout(original.id, self.config.heldout)
            record = drop_leading_answer(original)
            for image in record.images:
                check_row(self.config.tokens, self.vision.features_per_image)
                check_header(image, self.vision.image_size, self.config.aspect, record.origin)
            whole = self.renderer.render(record)
            sample = self._fitted(whole, record.origin)
        except RecordError as error:
            return Entry(heldout=heldout, error=error)
        truncated = len(sample.tokens) < len(whole.tokens)
        length = expanded_length(sample, self.vision.features_per_image)
        if self.config.augment.shuffle_turns and not heldout and _shuffles(record):
            length = min(length + _ORDER_SLACK, self.config.tokens)
        supervised = int(np.count_nonzero(sample.loss_weights[1:]))
        return Entry(length, len(record.images), supervised, heldout, truncated, record is not original)

    def write_row(self, batch: Batch, row: int, members: Sequence[int], seed: str | None) -> None:
        """Writes the samples `members` into a row of an empty batch; `seed` None leaves them as they are in the file.

        Raises:
          RecordError: an image that passed the index pass by its header cannot be decoded.
        """
        pieces, pixels = [], []
        for index in members:
            record = self.record(index)
            random = None if seed is None else python_random.Random(f"{seed}/{index}")
            pieces.append(expand(self._sample(record, index, random), self.vision.features_per_image))
            for number in range(len(record.images)):
                image = self._image(record, index, number)
                if random is not None:
                    options = self.config.augment
                    image = augment(image, random, flip=options.flip, shift=options.shift)
                pixels.append(image)
        fill_row(batch, row, pieces, pixels, self.vision.features_per_image)

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

    def _image(self, record: Record, index: int, number: int) -> np.ndarray:
        image = self._images.get((index, number))
        if image is None:
            image = load_image(
                record.images[number],
                self.vision.image_size,
                self.config.aspect,
                record.origin,
                pad_colour=self.vision.pad_colour,
            )
            if self.keep_images:
                self._images[index, number] = image
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
    only_image = users[0].strip() == IMAGE  # without it the question would be empty
    return len(users) > 1 and placeholders[0] <= 1 and not any(placeholders[1:]) and not only_image
