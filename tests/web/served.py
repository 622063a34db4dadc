"""The studio's app behind a real port, in a thread of the test."""

import contextlib
import socket
import threading

import uvicorn

from jaxvlm.web.server import build_app


@contextlib.contextmanager
def serving(studio):
    """Yields the address of the page, with the token that lets it in."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(build_app(studio), lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}{studio.prefix}/#token={studio.token}"
    finally:
        studio.closing = server.should_exit = True
        thread.join()
        listening.close()
