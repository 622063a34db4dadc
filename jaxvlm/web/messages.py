"""Requests and replies of the studio: JSON in, JSON out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jaxvlm.web.problem import Problem
from jaxvlm.web.texts import without_nonfinite

BODY = "jaxvlm.body"  # of the scope: the bytes that `guard.Guard` has read


class Reply(Response):
    """A value as JSON; NaN and infinities become null."""

    media_type = "application/json"

    def __init__(self, value: Any, status: int = 200, headers: dict[str, str] | None = None):
        super().__init__(_to_json(value), status, headers)


def _to_json(value: Any) -> bytes:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        text = json.dumps(without_nonfinite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def refusal(problem: Problem) -> Reply:
    """The reply for a problem."""
    return Reply(problem.to_dict(), problem.status)


def get(path: str, handler: Callable[[Request], Response | Any]) -> Route:
    """A route that reads. The handler is a plain function, run in a thread, or a coroutine."""
    return Route(path, handler, methods=["GET"])


def post(path: str, handler: Callable[[Request], Response | Any]) -> Route:
    """A route that changes something; its body is `body_of(request)`."""
    return Route(path, handler, methods=["POST"])


def body_of(request: Request) -> dict[str, Any]:
    """The object in a request's body.

    Raises:
      Problem: 400: it is no JSON object.
    """
    try:
        found = json.loads(request.scope[BODY] or b"{}")
    except (ValueError, RecursionError) as error:
        raise Problem(400, "bad_json", f"the body is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise Problem(400, "bad_json", "the body is no JSON object")
    return found


_MISSING = object()


def field(values: dict[str, Any], name: str, kind: type, default: Any = _MISSING) -> Any:
    """A field of a body.

    Args:
      kind: its type; a whole number is also a float.
      default: for a field that is missing or null; without one it is needed.

    Raises:
      Problem: 422: it is missing, or of another type.
    """
    value = values.get(name)
    if value is None and default is not _MISSING:
        return default
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise Problem(422, "bad_field", f"{name} is needed, as {kind.__name__}; found {value!r:.100}", field=name)
    return value


def query(request: Request, name: str, default: str | None = None) -> str:
    """A parameter of the address.

    Raises:
      Problem: 422: it is missing and there is no default.
    """
    value = request.query_params.get(name, default)
    if value is None:
        raise Problem(422, "bad_field", f"{name} is missing in the address", field=name)
    return value


def query_number(request: Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number of the address.

    Raises:
      Problem: 422: it is no whole number from `low` to `high`.
    """
    text = query(request, name, str(default))
    if text.isdecimal() and low <= (number := int(text[:20])) <= high:
        return number
    raise Problem(
        422, "bad_field", f"{name}: expected a whole number from {low} to {high}; found {text!r:.50}", field=name
    )
