"""The studio's server: the pages, and the JSON that they show."""

from __future__ import annotations

import importlib.metadata
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from jaxvlm.errors import UserError, explained
from jaxvlm.web import chat_api, data_api, doctor_api, evaluation_api, export_api, recipe_api, runs_api
from jaxvlm.web.access import COOKIE_SECONDS, cookie_name, is_logged_in, is_token
from jaxvlm.web.guard import Guard
from jaxvlm.web.messages import Reply, body_of, field, get, post, refusal
from jaxvlm.web.problem import Problem

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

PAGES = Path(__file__).parent / "pages"
# Each module has `routes(studio)`, the paths that it answers.
API = (runs_api, recipe_api, data_api, evaluation_api, chat_api, export_api, doctor_api)


def build_app(studio: Studio) -> Starlette:
    """The app of a studio: pages and JSON, below its prefix."""
    routes: list[BaseRoute] = [*_session_routes(studio), *(route for part in API for route in part.routes(studio))]
    routes += [get("/", _index), Mount("/", StaticFiles(directory=PAGES, check_dir=False))]
    if studio.prefix:
        last = studio.prefix.rpartition("/")[2]
        routes = [
            Route(studio.prefix, lambda request: RedirectResponse(f"{last}/", 307)),  # relative, as all addresses are
            Mount(studio.prefix, routes=routes),
        ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, studio=studio)],
        exception_handlers={Problem: _on_problem, UserError: _on_mistake, OSError: _on_os, HTTPException: _on_status},  # type: ignore[dict-item]
    )
    app.router.redirect_slashes = False  # it would name the scheme and host, which a proxy may have replaced
    return app


def _index(_: Request) -> Response:
    return FileResponse(PAGES / "index.html")


def _session_routes(studio: Studio) -> list[Route]:
    """Paths that need no token."""

    def session(request: Request) -> Reply:
        open_to_all = {"language": studio.language, "version": importlib.metadata.version("jaxvlm")}
        if not is_logged_in(studio, request.headers):
            return Reply({"logged_in": False} | open_to_all)
        own = {
            "logged_in": True,
            "read_only": studio.read_only,
            "root": str(studio.root),
            "recipes": str(studio.recipes),
            "data_roots": [str(path) for path in studio.data_roots],
            "prefix": studio.prefix,
            "host": socket.gethostname(),
            "now": round(time.time(), 1),
        }
        return Reply(own | open_to_all)

    def login(request: Request) -> Reply:
        if not is_token(studio, field(body_of(request), "token", str)):
            raise Problem(401, "wrong_token", "this is not the token of this studio; open the address that it printed")
        reply = Reply({"logged_in": True})
        reply.set_cookie(
            cookie_name(studio.token),
            studio.token,
            max_age=COOKIE_SECONDS,
            path=f"{studio.prefix}/",
            httponly=True,
            samesite="strict",
            secure=request.headers.get("x-forwarded-proto") == "https",
        )
        return reply

    return [get("/api/session", session), post("/api/login", login)]


async def _on_problem(_: Request, problem: Problem) -> Reply:
    return refusal(problem)


async def _on_mistake(_: Request, error: UserError) -> Reply:
    return refusal(Problem(422, "mistake", str(error)))


async def _on_os(_: Request, error: OSError) -> Reply:
    known = explained(error)  # such as a full disk
    if known is None:
        raise error
    return refusal(Problem(507, "disk", str(known)))


async def _on_status(_: Request, error: HTTPException) -> Reply:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    reply = refusal(Problem(error.status_code, code, error.detail))
    reply.headers.update(error.headers or {})
    return reply
