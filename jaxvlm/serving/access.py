"""Who may ask the server: the key, the Host header, and the origins of pages in browsers."""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path

from jaxvlm.errors import UserError

KEY_VARIABLE = "JAXVLM_API_KEY"
_OPEN_PATHS = ("/health",)  # without a key, for load balancers


class ApiError(Exception):
    """An error with its HTTP status, in the terms of OpenAI's error bodies.

    Attributes:
      kind: the body's "type".
      retry_after: seconds, for the header of that name; None: none is sent.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.retry_after = retry_after


def read_key(file: str | None, environment: Mapping[str, str]) -> bytes | None:
    """The key of a file, else of the environment; None: there is none.

    Raises:
      UserError: the file cannot be read, or the key is no single word of printable ASCII.
    """
    where, text = f"the variable {KEY_VARIABLE}", environment.get(KEY_VARIABLE)
    if file is not None:
        where = f"--api-key-file {file}"
        try:
            text = Path(file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{where}: it cannot be read ({error}); give a text file with the key alone") from error
    if text is None:
        return None
    if not re.fullmatch(r"[\x21-\x7e]+", text.strip()):
        raise UserError(f"{where}: a key is one word of printable ASCII, such as `openssl rand -hex 32` prints")
    return text.strip().encode()


def is_loopback(host: str) -> bool:
    """Whether a host, as the command line or a Host header has it without the port, is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


@dataclasses.dataclass(frozen=True)
class Access:
    """The rules of access.

    Attributes:
      key: that requests have to send as a bearer token; None: what they send is ignored.
      loopback: whether the server listens on this machine alone. Then requests must name it in the Host header, or any
        web page could reach the server under a name of its own that it lets resolve to 127.0.0.1 (DNS rebinding).
      origins: of pages in browsers that may ask, such as "http://localhost:3000"; "*": all.
    """

    key: bytes | None = None
    loopback: bool = True
    origins: frozenset[str] = frozenset()

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Checks a request.

        Raises:
          ApiError: 403 or 401.
        """
        host = re.sub(r":\d*$", "", headers.get("host", ""))
        if self.loopback and not is_loopback(host):
            raise ApiError(
                403,
                f"the Host header names {host[:100]!r}, and this server is only for its own machine; ask it as "
                "localhost, or start it with --host",
                "permission_error",
                "host_not_allowed",
            )
        # Browsers send an Origin with each request to another site; they send some such requests without asking first.
        origin = headers.get("origin")
        if origin is not None and not self.origins & {origin, "*"}:
            problem = f"pages of {origin[:100]!r} may not ask this server; start it with --allow-origin {origin[:100]}"
            raise ApiError(403, problem, "permission_error", "origin_not_allowed")
        if self.key is None or path in _OPEN_PATHS:
            return
        kind, _, sent = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(sent.strip().encode(), self.key):
            problem = "the API key is missing or wrong; send it in the header Authorization: Bearer KEY"
            raise ApiError(401, problem, "authentication_error", "invalid_api_key")
