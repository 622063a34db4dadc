"""Fetches images of allowed hosts over HTTP, and reaches nothing else.

A name is resolved once, every address of it must be public, and the connection goes to an address that was checked: a
name that points elsewhere a moment later changes nothing. Redirects are not followed. Proxies of the environment are
not used.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import urllib.parse
from typing import NamedTuple

_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
_BAD_IN_URL = re.compile(r"[\x00-\x20\x7f-\U0010ffff\\]")
# They carry an IPv4 address that may be private: NAT64 (RFC 6052 and 8215), IPv4-compatible.
_EMBEDDING = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))


class UrlError(Exception):
    """A URL that is refused, whoever answers there."""


class FetchError(Exception):
    """An allowed URL that did not give an image in time."""


class Target(NamedTuple):
    """The parts of an allowed URL."""

    scheme: str
    host: str
    port: int
    path: str  # with the query


def check_host(text: str) -> str:
    """A host of `--allow-url` in the form that URLs are compared with: "name", or "name:port".

    Raises:
      ValueError: it is neither.
    """
    host, _, port = text.lower().partition(":")
    if not _NAME.fullmatch(host) or (port and not port.isdecimal()):
        raise ValueError(f"{text!r} is no host; write its name alone, or name:port")
    return f"{host}:{port}" if port else host


def parse(url: str, hosts: frozenset[str]) -> Target:
    """Splits a URL, of http or https.

    Args:
      hosts: of `check_host`. A host without a port allows the usual port of the scheme.

    Raises:
      UrlError: it is malformed, has a user name, or is on another host.
    """
    if _BAD_IN_URL.search(url):
        raise UrlError("the URL has spaces, backslashes, control characters or letters beyond ASCII; escape them")
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = (parts.hostname or "").lower(), _PORTS[parts.scheme] if parts.port is None else parts.port
    except ValueError as error:
        raise UrlError(f"the URL is malformed: {error}") from error
    if "@" in parts.netloc:
        raise UrlError("the URL has a user name; leave it out")
    allowed = {f"{host}:{port}"} | ({host} if port == _PORTS[parts.scheme] else set())
    if not allowed & hosts:
        known = f"; allowed are {', '.join(sorted(hosts))}" if hosts else ""
        raise UrlError(
            f"the server does not fetch from {host or 'no host'}:{port}{known}; send the image as a data: URL, or "
            "start the server with --allow-url HOST"
        )
    path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    return Target(parts.scheme, host, port, path)


def fetch(target: Target, max_bytes: int, seconds: float) -> bytes:
    """The body that a URL answers a GET with.

    Raises:
      UrlError: the host has an address that is not public.
      FetchError: another status than 200 (redirects are not followed), more than `max_bytes`, or no whole answer in
        `seconds`.
    """
    try:
        connection = _Connection(target, _resolve(target), seconds)
    except OSError as error:
        raise FetchError(f"{target.host} is not reached: {error}") from error
    alarm = threading.Timer(seconds, connection.abort)
    alarm.start()
    try:
        connection.request("GET", target.path, headers={"Accept": "image/*", "Accept-Encoding": "identity"})
        response = connection.getresponse()
        body = _read(response, max_bytes)
    except (OSError, http.client.HTTPException) as error:
        late = f"no whole answer in {seconds:g} s" if connection.aborted else str(error) or type(error).__name__
        raise FetchError(f"{target.host}: {late}") from error
    finally:
        alarm.cancel()
        connection.close()
    if connection.aborted:
        raise FetchError(f"{target.host}: no whole answer in {seconds:g} s")
    return body


def _read(response: http.client.HTTPResponse, max_bytes: int) -> bytes:
    if 300 <= response.status < 400:
        raise FetchError(f"it answered {response.status}, and redirects are not followed; pass the final URL")
    if response.status != 200:
        raise FetchError(f"it answered with status {response.status}")
    body = b"" if (response.length or 0) > max_bytes else response.read(max_bytes + 1)
    if (response.length or 0) > max_bytes or len(body) > max_bytes:
        raise FetchError(f"it has more than {max_bytes:,} bytes, the limit of an image")
    return body


def _resolve(target: Target) -> str:
    """An address of the host, all of whose addresses are public."""
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [str(address[4][0]) for address in found]
    if not addresses or not all(is_public(address) for address in addresses):
        raise UrlError(f"{target.host} has an address that is not public, and the server connects to none of these")
    return addresses[0]


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet: not private, loopback, link-local, shared, mapped or such."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    embeds = address.ipv4_mapped or address.sixtofour or address.teredo
    return not embeds and not any(address in network for network in _EMBEDDING)


class _Connection(http.client.HTTPConnection):
    """A connection to an address, whatever the name of the host resolves to."""

    def __init__(self, target: Target, address: str, seconds: float):
        super().__init__(target.host, target.port, timeout=seconds)
        self.default_port = _PORTS[target.scheme]  # for the Host header
        self._address, self._is_tls = address, target.scheme == "https"
        self._connected: socket.socket | None = None  # `sock` is None when a reply without a length has begun
        self.aborted = False

    def connect(self) -> None:
        """Connects, with TLS for the name of the host where the URL has it."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._is_tls:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
        self._connected = self.sock

    def abort(self) -> None:
        """Ends whatever another thread does with the connection."""
        self.aborted = True
        if self._connected is not None:
            with contextlib.suppress(OSError):
                self._connected.shutdown(socket.SHUT_RDWR)
