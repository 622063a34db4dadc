"""The scheduler: answers many requests at once with one decode program, whose rows they enter and leave freely.

One thread uses the devices. In a turn it lets waiting requests enter free slots, of up to ENTER_TOKENS tokens, starts
the next step of all slots, and reads the tokens of the step before it.

Axis letters:
  B slots   N new tokens
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

from jaxvlm.errors import UserError, on_a_line
from jaxvlm.inference.decoding import AnswerText
from jaxvlm.inference.engine import Engine
from jaxvlm.inspect.token_text import Vocabulary
from jaxvlm.media import MediaError
from jaxvlm.serving.answers import Answer, Ticket
from jaxvlm.serving.device import Device, Unread
from jaxvlm.serving.limits import Limits
from jaxvlm.serving.prompt_view import PromptView, view_prompt
from jaxvlm.serving.prompts import PromptBuilder, load_all
from jaxvlm.serving.requests import Event, Finished, FinishReason, QueueFullError, Request, RequestError
from jaxvlm.serving.statistics import Stats

_LOAD_THREADS = 2  # decode images; more would take the CPU from the model

# Tokens and features that are read for requests that enter, between two steps of the others, whose answers pause for
# so long. A step takes as long with few slots in use as with all: where only one request entered at a time, 8 clients
# with answers of 32 tokens had half of the slots empty.
ENTER_TOKENS = 1024

log = logging.getLogger(__name__)


class StoppedError(Exception):
    """The scheduler takes no requests: it is closed, was not started, or its thread failed."""


class Scheduler:
    """Answers requests with an engine's model. All methods may be called on any thread."""

    def __init__(self, engine: Engine, limits: Limits):
        """Checks the limits; `start` makes it ready.

        Raises:
          UserError: several hosts, a limit that makes no sense, or more tokens than the model's attention window.
        """
        self.limits = limits.checked(engine)
        self._engine = engine
        self._device = Device(engine, self.limits)
        self._builder = PromptBuilder(engine.renderer, engine.layout, self.limits.tokens, self.limits.max_images)
        self._vocabulary = Vocabulary(engine.tokenizer)
        self._spell = lambda token: self._vocabulary[token].text or b""
        self._pool = ThreadPoolExecutor(_LOAD_THREADS, "images")
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._answers: dict[int, Answer] = {}  # slot -> the answer that is written there
        self._entering: tuple[Answer, Generator[int, None, Unread]] | None = None
        self._unread: deque[Unread] = deque()
        self._stats = Stats(slots=self.limits.slots)
        self._problem = "it was not started"  # why no request is taken; "": they are
        self._is_closing = self._is_cancelling = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)

    def start(self, progress: bool = False) -> None:
        """Compiles all programs that will be used, then serves.

        Args:
          progress: show a bar on standard error.
        """
        self._device.compile(progress=progress)
        self._problem = ""
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[Event], None]) -> Ticket:
        """Takes a request.

        Args:
          deliver: is called on the scheduler's thread with each event, `Finished` last; it must not wait. A request is
            cancelled if it raises.

        Raises:
          RequestError: the request can never be answered; see `PromptBuilder.build` for the codes.
          QueueFullError: as many requests wait as may wait.
          StoppedError: no requests are taken any more.
        """
        self._check_open()
        AnswerText(self._engine.renderer, self._engine.open_ids, request.stop_texts)  # raises for an empty stop text
        ticket = Ticket(request, self._builder.build(request), deliver)
        with self._changed:
            self._check_open()
            self._waiting.append(ticket)
        loading = load_all(self._pool, self._builder, request.record, self._device.features_of)
        for future in loading:
            future.add_done_callback(lambda _: self._notify())
        ticket.loading = loading
        self._notify()
        return ticket

    def view(self, request: Request) -> PromptView:
        """The prompt of a request as the model would get it; nothing is answered.

        Raises:
          RequestError: as `submit`.
        """
        prompt = self._builder.build(request)
        try:
            return view_prompt(prompt, self._engine.layout, self._vocabulary, self.limits.tokens)
        except (UserError, MediaError) as error:
            raise RequestError(str(error), "invalid_image") from error

    def _check_open(self) -> None:
        if self._problem or self._is_closing:
            raise StoppedError(f"no requests are taken: {self._problem or 'it is being closed'}")
        if len(self._waiting) >= self.limits.queue:
            raise QueueFullError(f"{len(self._waiting)} requests wait, as many as may (--queue); try again later")

    def cancel(self, ticket: Ticket) -> None:
        """Ends a request at the next step, with the reason "cancelled"; does nothing if it has ended."""
        ticket.cancelled.set()
        self._notify()

    def stats(self) -> Stats:
        """A snapshot of the counters."""
        with self._changed:
            made = self._stats.copy()
            made.queued = len(self._waiting)
        made.slots_used = len(self._answers) + (self._entering is not None)
        self._device.add_to(made)
        return made

    def close(self, grace: float) -> None:
        """Takes no more requests, lets the others finish for `grace` seconds, and cancels what is left."""
        self._is_closing = True
        self._notify()
        if self._thread.is_alive():
            self._thread.join(grace)
            self._is_cancelling = True
            self._notify()
            self._thread.join()
        self._problem = self._problem or "it is closed"
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._device.watch()
            while self._wait():
                self._turn()
            self._problem = "it is closed"
        except BaseException as error:
            log.exception("the scheduler has failed")
            self._problem = f"it has failed ({on_a_line(error)}); restart it"
        finally:
            self._end_all()

    def _wait(self) -> bool:
        """Waits until there is work; returns whether there is any, or will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_work() or (self._is_closing and not self._waiting))
            return self._has_work()

    def _has_work(self) -> bool:
        return (
            bool(self._answers or self._unread)
            or self._entering is not None
            or any(ticket.is_loaded or self._is_cancelled(ticket) for ticket in self._waiting)
        )

    def _is_cancelled(self, ticket: Ticket) -> bool:
        return self._is_cancelling or ticket.cancelled.is_set()

    def _turn(self) -> None:
        self._end_cancelled()
        self._enter_all()
        step = self._device.step(list(self._answers.values()))
        if step is not None:
            self._unread.append(step)
        self._read_all_but(0 if step is None else 1)

    def _read_all_but(self, newest: int) -> None:
        while len(self._unread) > newest:
            self._read(self._unread.popleft())

    def _end_cancelled(self) -> None:
        for ticket in [ticket for ticket in self._waiting if self._is_cancelled(ticket)]:
            self._take(ticket)
            self._end(ticket, Finished("cancelled", ticket.prompt.length))
        if self._entering is not None and self._is_cancelled(self._entering[0].ticket):
            self._end_answer(self._entering[0], "cancelled")
        for answer in [answer for answer in self._answers.values() if self._is_cancelled(answer.ticket)]:
            self._end_answer(answer, "cancelled")

    def _enter_all(self) -> None:
        """Lets requests enter, and reads the first token of each while the device reads the next prompt."""
        left = ENTER_TOKENS
        while left > 0 and (done := self._enter()):
            left -= done
            self._read_all_but(1)

    def _enter(self) -> int:
        """Does a piece of work for the request that enters, or for the next one if a slot is free.

        Returns:
          what it was, in tokens; 0: there was nothing to do.
        """
        if self._entering is None:
            self._start_next()
        if self._entering is None:
            return 0
        answer, work = self._entering
        try:
            return next(work)
        except StopIteration as done:
            self._entering = None
            self._answers[answer.slot] = answer
            self._unread.append(done.value)
        except Exception as error:
            if not self._device.is_alive:
                raise
            log.exception("a request has failed")
            self._end_answer(answer, "error", on_a_line(error))
        return answer.ticket.prompt.length - answer.cached_tokens

    def _start_next(self) -> None:
        free = set(range(self.limits.slots)) - self._answers.keys()
        ready = (ticket for ticket in self._waiting if ticket.is_loaded)
        while free and (ticket := next(ready, None)) is not None:
            self._take(ticket)
            try:
                loaded = [future.result() for future in ticket.loading or ()]
            except RequestError as error:
                code, param = error.code, error.param
                self._end(ticket, Finished("error", ticket.prompt.length, problem=str(error), code=code, param=param))
                return
            except Exception as error:
                self._end(ticket, Finished("error", ticket.prompt.length, problem=on_a_line(error)))
                return
            text = AnswerText(self._engine.renderer, self._engine.open_ids, ticket.request.stop_texts)
            answer = Answer(ticket, min(free), text, self._spell)
            self._stats.queue_wait.add(answer.started - ticket.submitted)
            self._entering = answer, self._device.enter(answer, loaded)
            return

    def _take(self, ticket: Ticket) -> None:
        with self._changed:
            self._waiting.remove(ticket)

    def _read(self, unread: Unread) -> None:
        now = time.perf_counter
        for answer in unread.deliver():
            answer.last_token = now()
            if not answer.first_token:
                answer.first_token = answer.last_token
                self._stats.time_to_first_token.add(answer.first_token - answer.ticket.submitted)
            if answer.reason:
                self._end_answer(answer, answer.reason)

    def _end_answer(self, answer: Answer, reason: FinishReason, problem: str = "") -> None:
        answer.reason = reason
        if self._entering is not None and self._entering[0] is answer:
            self._entering = None
        if self._answers.get(answer.slot) is answer:
            del self._answers[answer.slot]
        pauses = len(answer.text.tokens) - 1
        if pauses > 0:
            self._stats.time_per_token.add((answer.last_token - answer.first_token) / pauses, pauses)
        self._end(answer.ticket, answer.finished(reason, problem))

    def _end(self, ticket: Ticket, finished: Finished) -> None:
        with self._changed:
            stats = self._stats
            stats.finished[finished.reason] += 1
            stats.prompt_tokens += finished.prompt_tokens
            stats.cached_tokens += finished.cached_tokens
            stats.completion_tokens += finished.completion_tokens
        for future in ticket.loading or ():
            future.cancel()
        ticket.send(finished)

    def _end_all(self) -> None:
        """Ends every request that has not ended, after a failure."""
        entering = [] if self._entering is None else [self._entering[0]]
        for answer in [*entering, *self._answers.values()]:
            self._end_answer(answer, "error", self._problem)
        while True:
            with self._changed:
                if not self._waiting:
                    return
                ticket = self._waiting.pop()
            self._end(ticket, Finished("error", ticket.prompt.length, problem=self._problem))
