"""What the server asks of the scheduler, and what comes back. HTTP is not known here."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxvlm.data.records import Record
from jaxvlm.errors import UserError
from jaxvlm.inference.sampling import GREEDY, Sampling

MAX_TOP_LOGPROBS = 20
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclasses.dataclass(frozen=True)
class Request:
    """One answer that is wanted. Of `n` answers to one prompt each is a request, with another `sampling.seed`.

    Attributes:
      record: the conversation; it ends with a user turn, and its images are bytes.
      max_new_tokens: the length limit of the answer; what the slot has room for if that is less, or if it is None.
      stop_texts: the answer ends before the first of them.
      top_logprobs: how many alternatives each token comes with, at most `MAX_TOP_LOGPROBS`; None: no log probabilities.
    """

    record: Record
    max_new_tokens: int | None = None
    sampling: Sampling = GREEDY
    stop_texts: tuple[str, ...] = ()
    top_logprobs: int | None = None


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of an answer, with its natural logarithm of the probability under the model (temperature 1)."""

    text: bytes  # UTF-8; a token may end within a character
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()  # the most likely tokens at its place, most likely first


@dataclasses.dataclass(frozen=True)
class Piece:
    """The next text of an answer; it never ends within a character."""

    text: str
    tokens: tuple[Token, ...] = ()  # if the request wants log probabilities


@dataclasses.dataclass(frozen=True)
class Finished:
    """The last event of an answer.

    Attributes:
      prompt_tokens: features of images among them.
      cached_tokens: of the prompt, those that another request had left.
      completion_tokens: without the end token.
      problem: of the reason "error".
      code, param: as those of `RequestError`, if the request itself was at fault, such as with a broken image.
    """

    reason: FinishReason
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    problem: str = ""
    code: str = ""
    param: str | None = None


Event = Piece | Finished


class RequestError(UserError):
    """A request that can never be answered.

    Attributes:
      code: short name of the rule: "context_length_exceeded", "invalid_image", "invalid_conversation".
      param: the field of the request that breaks it, such as "messages[2].content[1].image_url".
    """

    def __init__(self, message: str, code: str, param: str | None = None):
        super().__init__(message)
        self.code, self.param = code, param


class QueueFullError(Exception):
    """As many requests wait as may wait; try again later."""
