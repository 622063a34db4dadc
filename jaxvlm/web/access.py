"""Who may ask the studio: its own pages, with its token, under a name that is this server's.

| attack | what stops it |
|---|---|
| a page lets its own name resolve to 127.0.0.1 (DNS rebinding) | the Host header has to be a name of this server |
| another user or program of this machine | the token, in a cookie or as a bearer token |
| another site's page sends a form, or a fetch without asking | JSON and a header of our own; Origin; Sec-Fetch-Site |
| another site's page shows ours in a frame, or loads our JSON | headers of `HEADERS`; no CORS at all |
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING

from jaxvlm.serving.access import is_loopback
from jaxvlm.web.problem import Problem

if TYPE_CHECKING:
    from jaxvlm.web.studio import Studio

OPEN = ("api/session", "api/login")  # without a token; pages themselves are open too, and have nothing in them
CLIENT = "x-jaxvlm"  # a header that a page of another origin can only send if CORS lets it
COOKIE_SECONDS = 30 * 24 * 3600
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
        "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}


def cookie_name(token: str) -> str:
    """The cookie's name; studios on other ports of the same host have others, as cookies know no ports."""
    return f"jaxvlm_{hashlib.sha256(token.encode()).hexdigest()[:12]}"


def check_host(studio: Studio, headers: Mapping[str, str]) -> None:
    """Checks the name under which the server is asked.

    Raises:
      Problem: 421: it is another's.
    """
    host = headers.get("host", "")
    if not _is_own(studio, host):
        raise Problem(
            421,
            "host_not_allowed",
            f"the Host header names {host[:100]!r}; ask this server as 127.0.0.1, or start it with --allow-host",
            host=host[:100],
        )


def check_origin(studio: Studio, method: str, headers: Mapping[str, str]) -> None:
    """Checks that a request comes from a page of this server, or from no page.

    Raises:
      Problem: 403: it comes from elsewhere, or could.
    """
    site = headers.get("sec-fetch-site")
    changes = method not in ("GET", "HEAD")
    if site is not None and site not in (("same-origin",) if changes else ("same-origin", "none")):
        raise Problem(403, "cross_origin", f"a page of another origin asks (Sec-Fetch-Site: {site[:30]})")
    if not changes:
        return
    origin = headers.get("origin")
    if origin is not None and not _is_own_origin(studio, origin, headers.get("host", "")):
        raise Problem(403, "cross_origin", f"a page of another origin asks ({origin[:100]})")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(403, "not_json", f"a change is sent as application/json, not as {kind[:60] or 'nothing'}")
    if CLIENT not in headers:
        raise Problem(403, "no_client_header", "a change needs the header X-Jaxvlm: 1")


def is_logged_in(studio: Studio, headers: Mapping[str, str]) -> bool:
    """Whether a request has the token."""
    kind, _, sent = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and is_token(studio, sent.strip()):
        return True
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return False
    found = cookies.get(cookie_name(studio.token))
    return found is not None and is_token(studio, found.value)


def is_token(studio: Studio, text: str) -> bool:
    """Whether a text is the token, compared in constant time."""
    return bool(studio.token) and hmac.compare_digest(text.encode("utf-8", "replace"), studio.token.encode())


def check_token(studio: Studio, path: str, headers: Mapping[str, str]) -> None:
    """Checks the token of a request for data.

    Args:
      path: without the prefix, such as "api/runs".

    Raises:
      Problem: 401.
    """
    if path.startswith("api/") and path not in OPEN and not is_logged_in(studio, headers):
        raise Problem(401, "not_logged_in", "the token is missing; open the address that the studio printed")


def _is_own(studio: Studio, host: str) -> bool:
    name = re.sub(r":\d*$", "", host)
    return is_loopback(name) or host.lower() in studio.allowed_hosts or name.lower() in studio.allowed_hosts


def _is_own_origin(studio: Studio, origin: str, host: str) -> bool:
    scheme, _, place = origin.partition("://")
    if scheme not in ("http", "https"):
        return False
    # The same as the Host header, port included: another program of this machine has another port. A proxy may have
    # replaced that header; then --allow-host has the name that browsers know.
    return place.lower() == host.lower() or place.lower() in studio.allowed_hosts
