"""The HTTP server: OpenAI's paths for one model, answered by the scheduler."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxvlm.processes import log
from jaxvlm.serving.access import Access, ApiError
from jaxvlm.serving.media import MediaRules, read_image
from jaxvlm.serving.metrics import CONTENT_TYPE, Metrics
from jaxvlm.serving.protocol import Call, Served, parse_json, read_call
from jaxvlm.serving.replies import DONE, Choice, Completion, error_body, model_object, to_event, to_json, usage_of
from jaxvlm.serving.requests import Event, Finished, QueueFullError, RequestError
from jaxvlm.serving.scheduler import StoppedError
from jaxvlm.serving.waiting import Answers, ClientLeftError, unless_client_leaves

if TYPE_CHECKING:
    from jaxvlm.serving.scheduler import Scheduler

CHAT, PROMPT, MODELS, MODEL, HEALTH, METRICS = (
    "/v1/chat/completions",
    "/v1/chat/prompt",
    "/v1/models",
    "/v1/models/{name}",
    "/health",
    "/metrics",
)
CLIENT_LEFT = 499  # nginx's status for the log; nobody receives it
_STATUS = {"model_not_found": 404, "image_not_fetched": 422}  # of a `RequestError`, by its code; else 400
_RETRY_SECONDS = 2
_BODY_SECONDS = 120  # for a client to send a body
_POOL_THREADS = 4  # read bodies, and wait for hosts of images
_MOST_UNKNOWN = 100  # names of fields that are logged


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the server takes, besides the scheduler's limits.

    Attributes:
      max_body: bytes of a request.
      max_calls: chat completions at once; more are answered with 429 before their bodies are read.
    """

    access: Access = Access()
    media: MediaRules = MediaRules()
    max_body: int = 2**26
    max_calls: int = 264


@dataclasses.dataclass
class _Entry:
    """A request's line in the log."""

    status: int = 0
    tokens: str = ""


class Service:
    """Answers chat completions.

    Attributes:
      state: "starting", "ready", "stopping" or "failed"; only "ready" takes requests.
      open: chat completions that are being answered.
    """

    def __init__(self, scheduler: Scheduler, served: Served, rules: Rules):
        """Takes what answers."""
        self.scheduler, self.served, self.rules = scheduler, served, rules
        self.metrics = Metrics(scheduler.stats)
        self.state = "starting"
        self.open = 0
        self._pool = concurrent.futures.ThreadPoolExecutor(_POOL_THREADS, "requests")
        self._unknown: set[str] = set()

    def check_state(self) -> None:
        """Raises `ApiError` 503 unless requests are taken."""
        why = {
            "starting": "the model is being compiled; try again later",
            "stopping": "the server is shutting down",
            "failed": "the server has failed, and has to be started again",
        }.get(self.state)
        if why:
            raise ApiError(503, why, "server_error", f"server_{self.state}", retry_after=_RETRY_SECONDS)

    async def chat(self, request: HttpRequest) -> Response:
        """Answers a chat completion, in an event stream if it asks for one."""
        self.check_state()
        if self.open >= self.rules.max_calls:
            raise _queue_full()
        self.open += 1
        answers, is_streaming = Answers(self.scheduler), False
        try:
            content = await read_body(request, self.rules.max_body)
            begun = self._begin(content, answers)
            call, first = await unless_client_leaves(request.receive, begun)
            completion = Completion(self.served.name, logprobs=call.requests[0].top_logprobs is not None)
            entry: _Entry = request.scope["jaxvlm"]
            if call.stream:
                events = self._stream(call, completion, answers, first, entry)
                is_streaming = True
                return EventStream(events, functools.partial(self._end, answers))
            collected = self._collect(call, answers, first)
            choices = await unless_client_leaves(request.receive, collected)
            entry.tokens = _tokens([choice.finished for choice in choices if choice.finished])
            return JsonResponse(completion.whole(choices))
        except QueueFullError as error:
            raise _queue_full() from error
        except StoppedError as error:
            self.state = self.state if self.state == "stopping" else "failed"
            self.check_state()
            raise AssertionError from error
        finally:
            if not is_streaming:
                self._end(answers)

    async def prompt(self, request: HttpRequest) -> Response:
        """Tokens and pixels of a chat completion's prompt, as the model would get them."""
        self.check_state()
        content = await read_body(request, self.rules.max_body)

        def view() -> dict[str, Any]:
            call = self._read(content)
            try:
                return self.scheduler.view(call.requests[0]).to_json()
            except RequestError as error:
                raise _placed(error, call) from error

        return JsonResponse(await asyncio.get_running_loop().run_in_executor(self._pool, view))

    def _end(self, answers: Answers) -> None:
        answers.close()
        self.open -= 1

    async def _begin(self, content: bytes, answers: Answers) -> tuple[Call, tuple[int, Event]]:
        """Reads a body, submits its requests, and waits for the first event: a failure until then has its own status.

        Raises:
          ApiError, RequestError: the call is refused or failed.
        """
        call = await asyncio.get_running_loop().run_in_executor(self._pool, self._read, content)
        self._note_unknown(call.unknown)
        try:
            await answers.submit(call.requests, self._pool)
        except RequestError as error:
            raise _placed(error, call) from error
        first = await answers.next()
        if failure := self._failure(call, first[1]):
            raise failure
        return call, first

    def _read(self, content: bytes) -> Call:
        return read_call(parse_json(content), self.served, lambda url, at: read_image(url, self.rules.media, at))

    def _note_unknown(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self._unknown and len(self._unknown) < _MOST_UNKNOWN:
                self._unknown.add(name)
                log(f"ignored: the unknown field {name[:60]!r} of requests")

    async def _collect(self, call: Call, answers: Answers, first: tuple[int, Event]) -> list[Choice]:
        choices, item = [Choice() for _ in call.requests], first
        while True:
            index, event = item
            if failure := self._failure(call, event):
                raise failure
            choices[index].add(event)
            if not answers.open:
                return choices
            item = await answers.next()

    async def _stream(
        self, call: Call, completion: Completion, answers: Answers, first: tuple[int, Event], entry: _Entry
    ) -> AsyncIterator[bytes]:
        """Yields the events of a stream: each choice's role, its pieces, its end; usage; [DONE]. Or an error, alone."""
        finished, item, usage = list[Finished](), first, call.include_usage
        for index in range(len(call.requests)):
            yield to_event(completion.begin(index, usage=usage))
        while True:
            index, event = item
            if failure := self._failure(call, event):
                entry.status = failure.status
                yield to_event(_body(failure))
                return
            if isinstance(event, Finished):
                finished.append(event)
            yield to_event(completion.chunk(index, event, usage=usage))
            if not answers.open:
                break
            item = await answers.next()
        entry.tokens = _tokens(finished)
        if usage:
            yield to_event(completion.usage(finished))
        yield DONE

    def _failure(self, call: Call, event: Event) -> ApiError | None:
        """The error that ended an answer; None: it has not failed."""
        if not isinstance(event, Finished) or event.reason in ("stop", "length"):
            return None
        if event.reason == "cancelled":
            return ApiError(503, "the server is shutting down", "server_error", "server_stopping")
        if event.code:
            return _as_api_error(_placed(RequestError(event.problem, event.code, event.param), call))
        log(f"an answer failed: {event.problem}")
        return ApiError(500, "the answer failed; the log of the server has the reason", "server_error", "server_error")


def build_app(service: Service) -> FastAPI:
    """The paths of the server. Every error has OpenAI's body."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    served, rules = service.served, service.rules

    @app.post(CHAT)
    async def chat(request: HttpRequest) -> Response:
        return await service.chat(request)

    @app.post(PROMPT)
    async def prompt(request: HttpRequest) -> Response:
        return await service.prompt(request)

    @app.get(MODELS)
    async def models() -> Response:
        return JsonResponse({"object": "list", "data": [model_object(served)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != served.name:
            problem = f"the model {name[:100]!r} is not served; this server has {served.name!r}"
            raise ApiError(404, problem, code="model_not_found", param="model")
        return JsonResponse(model_object(served))

    @app.get(HEALTH)
    async def health() -> Response:
        is_ready = service.state == "ready"
        return JsonResponse({"status": "ok" if is_ready else service.state}, 200 if is_ready else 503)

    @app.get(METRICS)
    def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    for kind in (ApiError, RequestError, HTTPException, ClientLeftError, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _on_error)
    app.add_middleware(_Guard, service=service)
    if rules.access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(rules.access.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
        )
    return app


async def read_body(request: HttpRequest, limit: int) -> bytes:
    """The body of a request.

    Raises:
      ApiError: 413 for more than `limit` bytes, 408 for one that does not come.
    """
    too_large = ApiError(
        413,
        f"the body has more than {limit:,} bytes, the limit of this server (--max-body)",
        code="request_too_large",
    )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > limit:
                    raise too_large
    except TimeoutError as error:
        raise ApiError(408, f"the body did not come within {_BODY_SECONDS} s", code="timeout") from error
    return bytes(content)


class JsonResponse(Response):
    """A value as JSON."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int = 200, headers: dict[str, str] | None = None):
        super().__init__(to_json(value), status, headers)


class EventStream(Response):
    """Server-sent events; `end` is called when all were sent, or the client has left."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], end: Callable[[], None]):
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._end = events, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events as they come."""

        async def send_all() -> None:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self._events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        try:
            await unless_client_leaves(receive, send_all())
        except (ClientLeftError, OSError):
            scope["jaxvlm"].status = CLIENT_LEFT
        finally:
            self._end()


class _Guard:
    """Checks who asks, counts each request, and logs a line about it, without anything that it contains."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, entry = time.perf_counter(), _Entry()
        scope["jaxvlm"] = entry

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
            await send(message)

        try:
            with self._service.metrics.in_flight.track_inprogress():
                await self._checked(scope, receive, send_and_note)
        except Exception:
            entry.status = 500  # the server's last handler writes the reply
            raise
        except asyncio.CancelledError:
            entry.status = CLIENT_LEFT
            raise
        finally:
            self._note(scope, entry, time.perf_counter() - began)

    async def _checked(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._service.rules.access.check(scope["path"], Headers(scope=scope))
        except ApiError as error:
            await _reply(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _note(self, scope: Scope, entry: _Entry, seconds: float) -> None:
        path = scope["path"]
        known = (
            MODEL
            if path.startswith(f"{MODELS}/")
            else path
            if path in (CHAT, PROMPT, MODELS, HEALTH, METRICS)
            else "other"
        )
        self._service.metrics.count(known, entry.status, seconds)
        if known in (HEALTH, METRICS) and entry.status in (200, 503):  # they are asked every few seconds
            return
        shown = urllib.parse.quote(path[:80]) if known == "other" else path[:80] if known != MODEL else known
        tokens = f" {entry.tokens}" if entry.tokens else ""
        log(f"{scope['method'][:10]} {shown} {entry.status}{tokens} {seconds:.2f} s")


def _tokens(finished: list[Finished]) -> str:
    usage = usage_of(finished)
    return f"{usage['prompt_tokens']}+{usage['completion_tokens']} tokens"


def _queue_full() -> ApiError:
    return ApiError(
        429,
        "as many requests wait as may (--queue); try again later",
        "rate_limit_error",
        "queue_full",
        retry_after=_RETRY_SECONDS,
    )


def _placed(error: RequestError, call: Call) -> RequestError:
    """The error with the place of an image in the body, where the scheduler has its number."""
    number = (error.param or "").removeprefix("images[").removesuffix("]")
    if not number.isdecimal() or int(number) >= len(call.image_params):
        return error
    param = call.image_params[int(number)]
    return RequestError(f"{param}: {str(error).removeprefix('messages: ')}", error.code, param)


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestError):
        return ApiError(_STATUS.get(error.code, 400), str(error), code=error.code, param=error.param)
    if isinstance(error, HTTPException):  # of the router: an unknown path or method
        return ApiError(
            error.status_code,
            f"{error.detail}; this server has POST {CHAT}, GET {MODELS}, GET {HEALTH} and GET {METRICS}",
            code="unknown_url" if error.status_code == 404 else "method_not_allowed",
        )
    if isinstance(error, ClientLeftError | ClientDisconnect):
        return ApiError(CLIENT_LEFT, "the client has left")
    return ApiError(500, "the server failed; its log has the reason", "server_error", "server_error")


def _body(error: ApiError) -> dict[str, Any]:
    return error_body(error.message, error.kind, error.code, error.param)


async def _on_error(_: HttpRequest, error: Exception) -> JsonResponse:
    return _reply(error)


def _reply(error: Exception) -> JsonResponse:
    known = _as_api_error(error)
    headers = dict(getattr(error, "headers", None) or {})  # of the router: Allow
    if known.retry_after is not None:
        headers["retry-after"] = str(known.retry_after)
    if known.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JsonResponse(_body(known), known.status, headers)
