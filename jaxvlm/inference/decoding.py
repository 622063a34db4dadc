"""Decoding of a batch of prompts, and the streamed text of one row.

Axis letters:
  B rows   N new tokens
"""

from __future__ import annotations

import collections
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from jaxvlm.batch import Array, Batch
from jaxvlm.inference.programs import STEP_TOKENS, Programs, Requests, Rows, bucket
from jaxvlm.inference.sampling import GREEDY, Sampling
from jaxvlm.inference.stop_texts import StopTexts
from jaxvlm.sharding import to_devices

if TYPE_CHECKING:  # it needs tokenizers, which a loop of tokens does not
    from jaxvlm.data.text.conversation import Renderer

_SMALLEST_ROOM = 8  # tokens; see `bucket`
_CONTEXT = 64  # tokens that are decoded again with the next ones; more would make long answers slow


class Decoding(Iterator[np.ndarray]):
    """Decoding of a batch: an iterator of its new tokens, int32[B, n], -1 after the end of a row.

    The device is one call ahead of the reader. On several hosts all make the same calls, and read all rows.
    """

    def __init__(self, programs: Programs, batch: Batch, requests: Requests, steps: int = STEP_TOKENS):
        """Starts without waiting.

        Args:
          batch: NumPy rows of this host, for `Programs.prefill`.
          requests: NumPy, of the same rows; their limits and temperatures are equal on all hosts.
          steps: tokens to a row between two reads, at most STEP_TOKENS.
        """
        self._programs, self._steps = programs, steps
        self._left = int(requests.limits.max())
        self._greedy = not requests.temperatures.any()
        if programs.place is not None:
            batch, requests = to_devices((batch, requests), programs.place.mesh, programs.place.rules)
        room = bucket(self._left, _SMALLEST_ROOM)
        features = programs.encode(batch.media)
        rows, first = programs.prefill(batch, features, requests, room=room, greedy=self._greedy)
        self._rows: Rows | None = rows
        self._unread: collections.deque[tuple[Array, int]] = collections.deque([(first, 1)])
        self._read: list[np.ndarray] = []
        self._left -= 1
        self._dispatch()

    def _dispatch(self) -> None:
        """Starts the next step, if one may follow."""
        steps = min(self._steps, self._left)
        if steps:
            assert self._rows is not None
            self._rows, tokens_BN = self._programs.step(self._rows, steps, greedy=self._greedy)
            self._unread.append((tokens_BN, steps))
            self._left -= steps
        if not self._left:
            self._rows = None  # frees the cache after the last step

    def __next__(self) -> np.ndarray:
        """Waits for the tokens of the next step."""
        if not self._unread:
            raise StopIteration
        if len(self._unread) == 1:
            self._dispatch()
        array, count = self._unread.popleft()
        tokens_BN = np.asarray(array)[:, :count]
        self._read.append(tokens_BN)
        if not ((tokens_BN[:, -1] >= 0) & ~np.isin(tokens_BN[:, -1], self._programs.stop_ids)).any():
            self.cancel()  # all rows have ended; a started step has no work
        return tokens_BN

    def cancel(self) -> None:
        """Stops after the running step and frees the cache."""
        self._rows, self._left = None, 0
        self._unread.clear()

    def dispatch_all(self) -> None:
        """Reads until the last step has been started, after which another batch may use the device."""
        while self._left:
            next(self)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads the remaining tokens.

        Returns:
          int32[B, N], all new tokens, the stop id among them and 0 after it; int32[B], how many without the stop id.
        """
        collections.deque(self, maxlen=0)
        tokens_BN = np.concatenate(self._read, axis=1)
        lengths_B = np.sum((tokens_BN >= 0) & ~np.isin(tokens_BN, self._programs.stop_ids), axis=1)
        return np.maximum(tokens_BN, 0), lengths_B


def decode(
    programs: Programs, batch: Batch, numbers_B: np.ndarray, max_new_tokens: int, sampling: Sampling = GREEDY
) -> tuple[np.ndarray, np.ndarray]:
    """Answers the prompts of a batch, with as many tokens at most; see `Decoding.finish` for what it returns.

    Args:
      numbers_B: int32[B], see `Requests`.
    """
    return Decoding(programs, batch, Requests.same(numbers_B, max_new_tokens, sampling)).finish()


class AnswerText:
    """The text of an answer whose tokens come one after another. No piece ends within a character.

    Attributes:
      tokens: ids so far, without the stop id.
      text: the pieces so far.
      finish_reason: "stop" (a stop id came, or a stop text appeared), or "" while it is written.
    """

    def __init__(self, renderer: Renderer, open_ids: Container[int], stop_texts: Sequence[str] = ()):
        """The text of an answer without any token yet.

        Args:
          open_ids: tokens that are bytes, and special ones, which are not written; runs of them are decoded together.
          stop_texts: the answer ends before the first of them.

        Raises:
          UserError: a stop text is empty.
        """
        self._renderer, self._open_ids = renderer, open_ids
        self._stop_texts = StopTexts(stop_texts)
        self._start, self._decoded = 0, 0  # the first token of the decoded ones, and their characters so far
        self.tokens: list[int] = []
        self.text = ""
        self.finish_reason: Literal["", "stop"] = ""

    def push(self, tokens: Sequence[int]) -> str:
        """Takes the next tokens, of which a stop id can only be the last; returns the text that can be shown, or ""."""
        new = list(tokens)
        if new and new[-1] in self._renderer.stop_ids:
            self.finish_reason = "stop"
            new.pop()
        self.tokens += new
        end = len(self.tokens)
        while end and self.tokens[end - 1] in self._open_ids:
            end -= 1
        # A byte-level token may end within a character, which is then decoded as U+FFFD.
        decoded = self._renderer.decode(self.tokens[self._start : end]).rstrip("\ufffd")
        piece = self._show(decoded)
        self._drop_context(decoded, end)
        return piece

    def rest(self) -> str:
        """What is left to show when no token follows."""
        return self._show(self._renderer.decode(self.tokens[self._start :]), is_last=True)

    @property
    def stopped(self) -> bool:
        """Whether a stop text has appeared, after which nothing is shown."""
        return self._stop_texts.found

    def _drop_context(self, decoded: str, end: int) -> None:
        """Leaves tokens out of later calls of `decode`, if the text of the others is the same without them."""
        start = end - _CONTEXT
        if start - self._start < _CONTEXT or self.tokens[start - 1] in self._open_ids:
            return
        last = self._renderer.decode(self.tokens[start:end])
        if last and decoded.endswith(last):
            self._start, self._decoded = start, len(last)

    def _show(self, text: str, *, is_last: bool = False) -> str:
        """What can be shown of `text`, the decoded tokens, and has not been."""
        new = text[self._decoded :]
        self._decoded += len(new)
        piece = self._stop_texts.push(new) + (self._stop_texts.rest() if is_last else "")
        if self._stop_texts.found:
            self.finish_reason = "stop"
        self.text += piece
        return piece


class Stream(Iterator[str]):
    """A streamed answer: an iterator of pieces of its text, which together are the answer.

    No piece ends within a character.

    Attributes:
      finish_reason: "stop" (the model ended it, or a stop text appeared), "length" (cut at the limit), "cancelled", or
        "" while it is written.
    """

    def __init__(
        self, decoding: Decoding, renderer: Renderer, open_ids: Container[int], stop_texts: Sequence[str] = ()
    ):
        """The text of the first row of `decoding`, which is cancelled at a stop text; see `AnswerText`."""
        self._decoding = decoding
        self._answer = AnswerText(renderer, open_ids, stop_texts)
        self.finish_reason = ""

    @property
    def tokens(self) -> list[int]:
        """Ids so far, without the stop id."""
        return self._answer.tokens

    @property
    def text(self) -> str:
        """The pieces so far."""
        return self._answer.text

    def __next__(self) -> str:
        for tokens_BN in self._decoding:
            piece = self._answer.push([token for token in tokens_BN[0].tolist() if token >= 0])
            self._note_stop()
            if piece:
                return piece
        self.finish_reason = self.finish_reason or "length"
        piece = "" if self.finish_reason == "cancelled" else self._answer.rest()
        self._note_stop()
        if not piece:
            raise StopIteration
        return piece

    def _note_stop(self) -> None:
        if self._answer.stopped:
            self._decoding.cancel()
        self.finish_reason = self._answer.finish_reason or self.finish_reason

    def cancel(self) -> None:
        """Stops the answer after the running step; does nothing if it is complete."""
        self._decoding.cancel()
        self.finish_reason = self.finish_reason or "cancelled"

    close = cancel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
