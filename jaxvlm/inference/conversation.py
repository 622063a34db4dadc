"""A conversation with a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence

from jaxvlm.data.media.images import decode
from jaxvlm.data.media.video import read_video_size
from jaxvlm.data.records import Record, Turn, has_videos, placeholder_of, placeholders
from jaxvlm.errors import UserError
from jaxvlm.inference.engine import Engine
from jaxvlm.inference.sampling import Sampling
from jaxvlm.media import Medium, Video


class Conversation:
    """A conversation with a model: its turns and media so far. Each answer ends before the first of `stop_texts`."""

    def __init__(self, engine: Engine, sampling: Sampling, max_new_tokens: int, stop_texts: Sequence[str] = ()):
        self._engine, self._sampling, self._max_new_tokens = engine, sampling, max_new_tokens
        self._stop_texts = stop_texts
        self.reset()

    def reset(self) -> None:
        """Forgets everything."""
        self._turns: tuple[Turn, ...] = ()
        self._media: tuple[Medium, ...] = ()
        self._waiting: tuple[Medium, ...] = ()  # of the next turn

    def add(self, media: Sequence[Medium]) -> None:
        """Adds images and videos to the next turn.

        Raises:
          UserError: one is missing or corrupt; none is added.
        """
        for medium in media:
            check_medium(medium)
        self._waiting += tuple(media)

    def ask(self, text: str) -> str:
        """Answers a user turn and stores both.

        Raises:
          UserError: as `stream`.
        """
        return "".join(self.stream(text))

    def stream(self, text: str) -> Generator[str, None, None]:
        """Yields the answer to a user turn piece by piece; after the last piece both are stored.

        If the answer fails or is closed early, its turn is dropped and its images and videos stay for the next turn.

        Raises:
          UserError: the conversation is too long for the model, or the placeholders in the text are not those of the
            turn's images and videos.
        """
        media = self._media + self._waiting
        turns = (*self._turns, Turn("user", _placed(text, self._waiting, videos=has_videos(media))))
        record = Record("conversation", turns, media, f"turn {len(turns) // 2 + 1}")
        # A seed for each turn, or a question asked twice would draw the same numbers twice.
        sampling = dataclasses.replace(self._sampling, seed=(self._sampling.seed + len(self._turns)) % 2**32)
        with self._engine.stream(
            record, max_new_tokens=self._max_new_tokens, sampling=sampling, stop_texts=self._stop_texts
        ) as answer:
            yield from answer
        if answer.text:  # templates refuse an empty turn, so a question without an answer is dropped
            self._turns, self._media, self._waiting = (*turns, Turn("assistant", answer.text)), media, ()


def check_medium(medium: Medium) -> None:
    """Raises `UserError` if the file of an image or a video is missing or corrupt."""
    if isinstance(medium, Video):
        read_video_size(medium, "--video")
    else:
        decode(medium, "--image")


def _placed(text: str, media: Sequence[Medium], *, videos: bool) -> str:
    """The text with a placeholder for each medium: where it has them already, or all before it."""
    found = placeholders([Turn("user", text)], videos=videos)
    wanted = [placeholder_of(medium) for medium in media]
    if found and found != wanted:
        raise UserError(
            f"the text has {_listed(found)} for {_listed(wanted)}; write one placeholder for each image and video, in "
            "their order, or none at all"
        )
    return text if found else "".join(f"{placeholder}\n" for placeholder in wanted) + text


def _listed(found: Sequence[str]) -> str:
    return " ".join(found) or "no images"
