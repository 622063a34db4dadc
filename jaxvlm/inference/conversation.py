"""A conversation with a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence

from jaxvlm.data.media.images import decode
from jaxvlm.data.records import IMAGE, Record, Turn
from jaxvlm.errors import UserError
from jaxvlm.inference.engine import Engine
from jaxvlm.inference.sampling import Sampling


class Conversation:
    """A conversation with a model: its turns and images so far. Each answer ends before the first of `stop_texts`."""

    def __init__(self, engine: Engine, sampling: Sampling, max_new_tokens: int, stop_texts: Sequence[str] = ()):
        self._engine, self._sampling, self._max_new_tokens = engine, sampling, max_new_tokens
        self._stop_texts = stop_texts
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._turns: tuple[Turn, ...] = ()
        self._images: tuple[str, ...] = ()
        self._waiting: tuple[str, ...] = ()  # images of the next turn

    def add_images(self, images: list[str]) -> None:
        """Adds images to the next turn.

        Raises:
          UserError: one is missing or corrupt; none is added.
        """
        for image in images:
            check_image(image)
        self._waiting += tuple(images)

    def ask(self, text: str) -> str:
        """Answers a user turn and stores both.

        Raises:
          UserError: as `stream`.
        """
        return "".join(self.stream(text))

    def stream(self, text: str) -> Generator[str, None, None]:
        """Yields the answer to a user turn piece by piece; after the last piece both are stored.

        If the answer fails or is closed early, its turn is dropped and its images stay for the next turn.

        Raises:
          UserError: the conversation is too long for the model, or it does not have one `<image>` for each image.
        """
        placed = text.count(IMAGE)
        if placed and placed != len(self._waiting):
            raise UserError(
                f"the text has {placed} {IMAGE} for {len(self._waiting)} images; write one for each, or none at all"
            )
        if not placed:
            text = "".join(f"{IMAGE}\n" for _ in self._waiting) + text
        turns = (*self._turns, Turn("user", text))
        images = self._images + self._waiting
        record = Record("conversation", turns, images, f"turn {len(turns) // 2 + 1}")
        # A seed for each turn, or a question asked twice would draw the same numbers twice.
        sampling = dataclasses.replace(self._sampling, seed=(self._sampling.seed + len(self._turns)) % 2**32)
        with self._engine.stream(
            record, max_new_tokens=self._max_new_tokens, sampling=sampling, stop_texts=self._stop_texts
        ) as answer:
            yield from answer
        if answer.text:  # templates refuse an empty turn, so a question without an answer is dropped
            self._turns, self._images, self._waiting = (*turns, Turn("assistant", answer.text)), images, ()


def check_image(image: str) -> None:
    """Raises `UserError` if an image file is missing or corrupt."""
    decode(image, "--image")
