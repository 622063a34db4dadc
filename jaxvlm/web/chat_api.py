"""Paths of the chat: serving processes, completions streamed through from them, and what the model gets.

A chat is a task of the kind "chat": `python -m jaxvlm.serve` on a free port of the loopback, with a key of its own in
the task's folder. Its address is what its log says, so a studio that was started again finds it.
"""

from __future__ import annotations

import http.client
import json
import re
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from jaxvlm.files import cache_folder
from jaxvlm.web.messages import Reply, body_of, field, get, post, query
from jaxvlm.web.paths import data_path, run_folder
from jaxvlm.web.problem import Problem

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

KIND = "chat"
_READY = re.compile(r"ready after [\d.]+ s: (\S+) at http://127\.0\.0\.1:(\d+)/v1")
_COMPILING = re.compile(r"compiling for \d+ slots of (\d+) tokens")
_HEAD_BYTES = 2**17  # of a log, in which a server says that it is ready
_SECONDS = 600  # until a byte of an answer comes
_CHUNK = 2**16
_SLOTS = 2


class Address(NamedTuple):
    """Where a serving process listens, and its key."""

    port: int
    key: str


def routes(studio: Studio) -> list[Route]:
    """The paths of this module."""

    def start(request: Request) -> Reply:
        return Reply({"chat": start_chat(studio, body_of(request))})

    def state(request: Request) -> Reply:
        return Reply(chat_state(studio, query(request, "id")))

    def chats(_: Request) -> Reply:
        found = [task["id"] for task in studio.tasks.list() if task["kind"] == KIND and task["state"] == "running"]
        return Reply({"chats": [chat_state(studio, task) for task in found]})

    def stop(request: Request) -> Reply:
        chat = field(body_of(request), "id", str)
        _folder(studio, chat)
        studio.tasks.cancel(chat)
        return Reply({"id": chat})

    async def complete(request: Request) -> Response:
        body = body_of(request)
        address = await anyio.to_thread.run_sync(address_of, studio, field(body, "id", str))
        return await _passed_on(address, "/v1/chat/completions", field(body, "body", dict))

    async def show(request: Request) -> Response:
        body = body_of(request)
        address = await anyio.to_thread.run_sync(address_of, studio, field(body, "id", str))
        return await _passed_on(address, "/v1/chat/prompt", field(body, "body", dict))

    return [
        post("/api/chat/start", start),
        get("/api/chat", state),
        get("/api/chats", chats),
        post("/api/chat/stop", stop),
        post("/api/chat/complete", complete),
        post("/api/chat/show", show),
    ]


def start_chat(studio: Studio, body: dict[str, Any]) -> str:
    """Starts a serving process of a run or of a Hugging Face folder; returns the chat's ID.

    Raises:
      Problem: 404: no such run or folder; 422: not one of the two.
    """
    run, folder = field(body, "run", str, ""), field(body, "folder", str, "")
    stage, step = field(body, "stage", str, ""), field(body, "step", int, 0)
    if bool(run) == bool(folder):
        raise Problem(422, "bad_field", "name a run or a folder of weights, one of the two", field="run")
    if folder and (stage or step):
        raise Problem(422, "bad_field", "stage and step choose among a run's checkpoints", field="stage")
    model = [f"--run={run_folder(studio, run)}"] if run else [f"--from={data_path(studio, folder)}"]
    model += [f"--stage={stage}"] if stage else []
    model += [f"--step={step}"] if step else []

    def command(task: Path) -> list[str]:
        key = task / "key"
        key.touch(mode=0o600)
        key.write_text(secrets.token_hex(32) + "\n")
        flags = ["--port=0", f"--slots={_SLOTS}", f"--api-key-file={key}"]
        return [sys.executable, "-m", "jaxvlm.serve", *model, *flags]

    about = {"run": run, "folder": folder, "stage": stage, "step": step}
    # The same model compiles the same programs each time: minutes on a CPU, seconds from this cache.
    return studio.tasks.start(KIND, command, about, {"JAX_COMPILATION_CACHE_DIR": str(cache_folder() / "compiled")})


def _folder(studio: Studio, chat: str) -> Path:
    """The task's folder of a chat.

    Raises:
      Problem: 404: there is none.
    """
    folder = studio.tasks.folder(chat)
    if not chat.startswith(f"{KIND}-"):
        raise Problem(404, "no_chat", f"there is no chat {chat!r}", chat=chat)
    return folder


def chat_state(studio: Studio, chat: str) -> dict[str, Any]:
    """{id, state, model, tokens, about, log_tail}; the state is starting, compiling, ready, stopped or failed.

    Raises:
      Problem: 404: there is none.
    """
    folder, task = _folder(studio, chat), studio.tasks.get(chat)
    head = _head(folder / "log.txt")
    compiling, ready = _COMPILING.search(head), _READY.search(head)
    state = {"cancelled": "stopped", "done": "stopped", "failed": "failed"}.get(task["state"], "")
    return {
        "id": chat,
        "state": state or ("ready" if ready else "compiling" if compiling else "starting"),
        "model": ready[1] if ready else None,
        "tokens": int(compiling[1]) if compiling else None,
        "about": task["about"],
        "started": task["started"],
        "log_tail": task["log_tail"],
    }


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def address_of(studio: Studio, chat: str) -> Address:
    """Where a chat's server listens.

    Raises:
      Problem: 404: there is none; 409: it is not ready.
    """
    state = chat_state(studio, chat)
    if state["state"] != "ready":
        raise Problem(409, "chat_not_ready", f"the model is {state['state']}", chat=chat, state=state["state"])
    folder = _folder(studio, chat)
    match = _READY.search(_head(folder / "log.txt"))
    assert match is not None
    return Address(int(match[2]), (folder / "key").read_text().strip())


async def _passed_on(address: Address, path: str, body: dict[str, Any]) -> Response:
    """The reply of the serving process to a body, as it comes."""
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=_SECONDS)
    try:
        reply = await anyio.to_thread.run_sync(_ask, connection, address.key, path, body, abandon_on_cancel=True)
    except (OSError, http.client.HTTPException) as error:
        _close(connection)
        raise Problem(502, "chat_gone", f"the serving process does not answer ({error}); start it again") from error
    except BaseException:
        _close(connection)
        raise
    kind = reply.headers.get("content-type", "application/json")
    headers = {"content-type": kind, "cache-control": "no-cache", "x-accel-buffering": "no"}
    return StreamingResponse(_pieces(connection, reply), reply.status, headers)


def _ask(connection: http.client.HTTPConnection, key: str, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request("POST", path, json.dumps(body), headers)
    return connection.getresponse()


async def _pieces(connection: http.client.HTTPConnection, reply: http.client.HTTPResponse) -> AsyncIterator[bytes]:
    """What comes, when it comes; if the reader leaves, the serving process is told by the end of the connection."""
    try:
        while piece := await anyio.to_thread.run_sync(reply.read1, _CHUNK, abandon_on_cancel=True):
            yield piece
    except (OSError, http.client.HTTPException):
        yield b'data: {"error": {"message": "the serving process has ended", "code": "chat_gone"}}\n\n'
    finally:
        _close(connection)


def _close(connection: http.client.HTTPConnection) -> None:
    """Also ends a read in another thread, which closing alone does not."""
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
