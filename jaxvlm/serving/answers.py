"""The host's side of an answer: from its tokens to events.

Axis letters:
  K likely tokens
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Literal

import numpy as np

from jaxvlm.inference.decoding import AnswerText
from jaxvlm.inference.programs import Likelihoods
from jaxvlm.serving.prompts import Loaded, Prompt
from jaxvlm.serving.requests import Event, Finished, FinishReason, Piece, Request, Token

log = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class Ticket:
    """A request that was submitted.

    Attributes:
      submitted: seconds of `time.perf_counter`.
      loading: its images; None: that was not started yet.
      cancelled: whether nobody waits for it any more.
    """

    request: Request
    prompt: Prompt
    deliver: Callable[[Event], None]
    loading: list[Future[Loaded]] | None = None
    submitted: float = dataclasses.field(default_factory=time.perf_counter)
    cancelled: threading.Event = dataclasses.field(default_factory=threading.Event)

    @property
    def is_loaded(self) -> bool:
        """Whether all images are there, or have failed."""
        return self.loading is not None and all(future.done() for future in self.loading)

    def send(self, event: Event) -> None:
        """Delivers an event; if that fails, the request is cancelled."""
        try:
            self.deliver(event)
        except Exception:
            log.exception("an event could not be delivered; its request is cancelled")
            self.cancelled.set()


class Answer:
    """An answer while its request has a slot.

    Attributes:
      slot: its row.
      left: tokens that may still be asked of the device.
      reason: "" while it is written.
      cached_tokens: of its prompt.
    """

    def __init__(self, ticket: Ticket, slot: int, text: AnswerText, spell: Callable[[int], bytes]):
        """An answer without any token; `spell` gives the bytes of a token."""
        self.ticket, self.slot, self.text = ticket, slot, text
        self.left, self.cached_tokens = ticket.prompt.max_new_tokens, 0
        self.reason: FinishReason | Literal[""] = ""
        self.started = time.perf_counter()
        self.first_token = self.last_token = 0.0
        self._spell = spell
        self._unsent: list[Token] = []

    @property
    def wants_likelihoods(self) -> bool:
        """Whether its tokens come with likelihoods."""
        return self.ticket.request.top_logprobs is not None

    def take(self, tokens: list[int], likelihoods: Likelihoods | None) -> None:
        """Takes the next tokens and delivers their text; sets `reason` if it is the end.

        Args:
          tokens: one or more, a stop id the last of them if there is one.
          likelihoods: of the same tokens, NumPy arrays without the axis B.
        """
        before = len(self.text.tokens)
        piece = self.text.push(tokens)
        new = self.text.tokens[before:]
        self._note(new, likelihoods)
        self.reason = self.text.finish_reason
        if not self.reason and len(self.text.tokens) >= self.ticket.prompt.max_new_tokens:
            self.reason = "length"
        if self.reason and not self.text.stopped:
            piece += self.text.rest()
            self.reason = "stop" if self.text.stopped else self.reason
        if self.text.stopped:
            self._leave_out_stop_text()
        if piece or (self.reason and self._unsent):
            self.ticket.send(Piece(piece, tuple(self._unsent)))
            self._unsent.clear()

    def _note(self, new: list[int], likelihoods: Likelihoods | None) -> None:
        top = self.ticket.request.top_logprobs
        if likelihoods is None or top is None:
            return
        for token, chosen, ids_K, log_K in zip(
            new, likelihoods.chosen, likelihoods.top_ids, likelihoods.top, strict=False
        ):
            most = tuple((self._spell(int(id)), float(log)) for id, log in zip(ids_K[:top], log_K, strict=False))
            self._unsent.append(Token(self._spell(token), float(chosen), most))

    def _leave_out_stop_text(self) -> None:
        """Of the tokens that were not sent, keeps those that the text before the stop text has."""
        kept = len(self.text.tokens)
        size = len(self.text.text.encode())
        spelled = np.cumsum([len(self._spell(token)) for token in self.text.tokens])
        kept = int(np.searchsorted(spelled, size)) + 1 if size else 0
        beyond = len(self.text.tokens) - kept
        if beyond > 0:
            del self._unsent[max(0, len(self._unsent) - beyond) :]

    def finished(self, reason: FinishReason, problem: str = "") -> Finished:
        """The last event."""
        prompt = self.ticket.prompt.length
        return Finished(reason, prompt, self.cached_tokens, len(self.text.tokens), problem)
