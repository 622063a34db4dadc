"""A scheduler without a model, and a server of it in a thread."""

import contextlib
import dataclasses
import threading
import types
from queue import Empty, Queue

from jaxvlm.listening import bind
from jaxvlm.serving.prompt_view import PromptView
from jaxvlm.serving.protocol import Served
from jaxvlm.serving.requests import Finished, Piece, QueueFullError, RequestError, Token
from jaxvlm.serving.running import Server
from jaxvlm.serving.server import Rules, Service
from jaxvlm.serving.statistics import Stats


@dataclasses.dataclass(eq=False)
class Ticket:
    request: object
    deliver: object
    words: list
    cancelled: bool = False


class FakeScheduler:
    """Answers each request with its own last text, word by word; follows the contract of `scheduler.Scheduler`.

    A text "wait" is answered only after `go` is set, "fail" fails, "long" is beyond the context, and an image of one
    pixel fails when its answer begins, as one does that only breaks while it is decoded.
    """

    def __init__(self, slots=4, queue=256, room=1000):
        self.limits = types.SimpleNamespace(slots=slots, queue=queue, tokens=room)
        self.go = threading.Event()
        self.seen, self._work, self._stats = [], Queue(), Stats(slots=slots)
        self._open, self._lock = set(), threading.Lock()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self, progress=False):
        self._thread.start()

    def submit(self, request, deliver):
        text = request.record.turns[-1].text
        if "long" in text:
            raise RequestError(
                "the model's context is 10 tokens, the request has 20", "context_length_exceeded", "messages"
            )
        with self._lock:
            if len(self._open) >= self.limits.queue + self.limits.slots:
                raise QueueFullError("full")
            ticket = Ticket(request, deliver, text.replace("<image>", "").split())
            self.seen.append(request)
            self._open.add(ticket)
        self._work.put(ticket)
        return ticket

    def view(self, request):
        if "long" in request.record.turns[-1].text:
            raise RequestError("images[0] is broken", "invalid_image", "images[0]")
        tokens = ({"id": 5, "text": request.record.turns[-1].text, "control": False},)
        return PromptView(tokens, (), 1, self.limits.tokens)

    def cancel(self, ticket):
        ticket.cancelled = True

    def stats(self):
        made = self._stats.copy()
        made.slots_used = len(self._open)
        return made

    def close(self, grace):
        self._closing = True
        self._thread.join(grace)

    def _run(self):
        while not (self._closing and not self._open):
            with contextlib.suppress(Empty):
                self._advance(self._work.get(timeout=0.01))

    def _advance(self, ticket):
        words, request = ticket.words, ticket.request
        if ticket.cancelled:
            return self._end(ticket, Finished("cancelled"))
        if "wait" in words and not self.go.wait(0.01):
            return self._work.put(ticket)
        if "fail" in words:
            return self._end(ticket, Finished("error", problem="the device is on fire"))
        if ONE_PIXEL in request.record.images:
            param = f"images[{request.record.images.index(ONE_PIXEL)}]"
            return self._end(ticket, Finished("error", 0, 0, 0, "messages: it is broken", "invalid_image", param))
        limit = request.max_new_tokens or len(words)
        for number, word in enumerate(words[:limit]):
            text = word if number == 0 else f" {word}"
            tops = tuple((f"{text}{i}".encode(), -1.0 - i) for i in range(request.top_logprobs or 0))
            tokens = () if request.top_logprobs is None else (Token(text.encode(), -0.5, tops),)
            ticket.deliver(Piece(text, tokens))
        reason = "length" if limit < len(words) else "stop"
        return self._end(ticket, Finished(reason, 7 + len(request.record.images), 3, min(limit, len(words))))

    def _end(self, ticket, finished):
        with self._lock:
            self._open.discard(ticket)
        self._stats.finished[finished.reason] += 1
        ticket.deliver(finished)


ONE_PIXEL = b"P6 1 1 255\n\0\0\0"


@contextlib.contextmanager
def serving(scheduler=None, *, served=None, grace=5.0, ready=True, **rules):
    """A server on a free port; gives its service, with `url` and `server`, which does not run without `ready`."""
    scheduler = scheduler or FakeScheduler()
    served = served or Served("jaxvlm", max_choices=scheduler.limits.slots, tokens=scheduler.limits.tokens)
    made = Service(scheduler, served, Rules(**rules))
    listening = bind("127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    began = threading.Event()
    made.server = server = Server(made, listening, grace, began.set)
    if not ready:
        yield made
        return
    running = threading.Thread(target=server.run, daemon=True)
    running.start()
    try:
        assert began.wait(300)
        yield made
    finally:
        if isinstance(scheduler, FakeScheduler):
            scheduler.go.set()
        server.stop()
        running.join(30)
        assert not running.is_alive()
