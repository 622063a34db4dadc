"""The socket of a server of ours: `serve` and the studio."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from jaxvlm.errors import UserError


def bind(host: str, port: int, *, owner_of: Callable[[int], int | None] | None = None) -> socket.socket:
    """A socket on an address.

    Args:
      owner_of: finds the process that listens on a port, for the message. The socket then listens at once, so that two
        servers cannot both have bound it. None: it does not listen yet, so that early requests are refused.

    Raises:
      UserError: there is no such address here, or the port is in use or not permitted.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        if owner_of is not None:
            made.listen()
    except (OSError, OverflowError) as error:
        why = str(error)
        if owner_of is not None and isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            owner = owner_of(port)
            why = f"it is in use{f' by process {owner}' if owner else ''}"
        raise UserError(
            f"--host {host} --port {port}: {why}; choose another port (0: any that is free), or an address of this "
            "machine"
        ) from error
    return made
