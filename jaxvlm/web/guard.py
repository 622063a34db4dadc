"""Goes before every request: who asks, how large it is; and gives every reply its headers."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxvlm.web.access import HEADERS, check_host, check_origin, check_token
from jaxvlm.web.messages import BODY, refusal
from jaxvlm.web.problem import Problem

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

JSON_BYTES = 2**20
IMAGES_BYTES = 2**26
_WITH_IMAGES = ("api/chat/complete", "api/chat/show")
_IN_READ_ONLY = ("api/login",)


class Guard:
    """Wraps the app."""

    def __init__(self, app: ASGIApp, studio: Studio):
        """Takes the app."""
        self._app, self._studio = app, studio

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._answer(scope, receive, send_with_headers)
        except Problem as problem:
            await refusal(problem)(scope, receive, send_with_headers)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if started:
                raise
            failure = Problem(500, "server_error", "the studio failed; its terminal has the reason")
            await refusal(failure)(scope, receive, send_with_headers)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        studio, headers, method = self._studio, Headers(scope=scope), scope["method"]
        path = scope["path"].removeprefix(studio.prefix).removeprefix("/")
        check_host(studio, headers)
        if path.startswith("api/") or method not in ("GET", "HEAD"):
            check_origin(studio, method, headers)
        check_token(studio, path, headers)
        if method not in ("GET", "HEAD"):
            if studio.read_only and path not in _IN_READ_ONLY:
                raise Problem(403, "read_only", "this studio was started with --read-only, and changes nothing")
            scope[BODY] = await _body(receive, headers, IMAGES_BYTES if path in _WITH_IMAGES else JSON_BYTES)
        await self._app(scope, receive, send)


async def _body(receive: Receive, headers: Headers, limit: int) -> bytes:
    """The body of a request.

    Raises:
      Problem: 413: it is larger than `limit` bytes; 400: the client has left.
    """
    too_large = Problem(413, "too_large", f"the request is larger than {limit:,} bytes", limit=limit)
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    content = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Problem(400, "client_left", "the client has left")
        content += message.get("body", b"")
        if len(content) > limit:
            raise too_large
        if not message.get("more_body", False):
            return bytes(content)
