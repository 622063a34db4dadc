"""A network between a page and its server that can fail."""

import contextlib
import socket
import socketserver
import threading


class Forwarder(socketserver.ThreadingTCPServer):
    """Forwards connections to a port of this machine: `cut` drops them all, `refused` drops some requests.

    Attributes:
      heads: of the requests that went through, the oldest first.
      refused: a request whose first line has this text is dropped with its connection; "": none is.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, port):
        super().__init__(("127.0.0.1", 0), _Connection)
        self.target, self.refused, self.heads = port, "", []
        self._sockets, self._lock = set(), threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def port(self):
        return self.server_address[1]

    def __exit__(self, *_):
        self.shutdown()
        self.cut()
        self.server_close()

    def cut(self):
        """Drops every connection that is open."""
        with self._lock:
            for one in self._sockets:
                _close(one)
            self._sockets.clear()

    def add(self, *sockets):
        with self._lock:
            self._sockets |= {*sockets}


class _Connection(socketserver.BaseRequestHandler):
    def handle(self):
        here, server = self.request, self.server
        with socket.create_connection(("127.0.0.1", server.target)) as there:
            server.add(here, there)
            back = threading.Thread(target=_forward, args=(there, here, lambda _: True), daemon=True)
            back.start()
            _forward(here, there, self._passes)
            back.join()

    def _passes(self, content):
        """Whether a piece goes through; a browser sends the head of a request as one."""
        head = content.decode("latin-1")
        if not head.startswith(("GET ", "POST ")):
            return True
        if self.server.refused and self.server.refused in head.partition("\r\n")[0]:
            return False
        self.server.heads.append(head)
        return True


def _forward(source, target, passes):
    """Until one side closes, or a piece does not pass."""
    with contextlib.suppress(OSError):
        while (content := source.recv(65536)) and passes(content):
            target.sendall(content)
    _close(source)
    _close(target)


def _close(one):
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
