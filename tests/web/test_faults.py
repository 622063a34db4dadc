"""What goes wrong around a page that stays open, in Chromium: it says so, recovers, and shows each point once."""

import json
import os
import re
import signal
from urllib.parse import urlsplit

import pytest

from tests.browser import visit
from tests.web.folders import beat, make_run, metrics, own
from tests.web.forwarder import Forwarder
from tests.web.process import Process

pytestmark = pytest.mark.browser

POINTS = "[...document.querySelectorAll('.chart table.numbers td:first-child')].map((e) => Number(e.textContent))"
BADGE = "document.querySelector('.run-state .badge')?.dataset.state"
# The browser's own words for a request that got no answer.
EXPECTED = re.compile(r"\d+: Failed to load resource: net::ERR_\w+")


def points(*steps):
    """Waits for the curve to have exactly these points."""
    return ("wait_for", f"JSON.stringify({POINTS}) == '{json.dumps([*steps], separators=(',', ':'))}'")


def check(seen, *addresses):
    """Nothing on the console but lost connections, no request for another origin."""
    assert [line for line in seen.console if not EXPECTED.fullmatch(line)] == []
    assert {urlsplit(request).netloc for request in seen.requests} == {urlsplit(one).netloc for one in addresses}


class Metrics:
    """The metrics.jsonl of a run, for actions."""

    def __init__(self, path):
        self._path = path

    def add(self, text):
        def act():
            with self._path.open("a") as file:
                file.write(text)

        return ("do", act)

    def replace(self, text):
        """As a resumed run does."""

        def act():
            self._path.with_suffix(".new").write_text(text)
            self._path.with_suffix(".new").replace(self._path)

        return ("do", act)


class Restarted:
    """A server that is killed, and started again on its port."""

    def __init__(self, folder):
        self._folder, self.server = folder, Process(folder, "--port", 0)
        self.port = int(self.server.place.rpartition(":")[2])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.__exit__()

    def kill(self):
        os.killpg(self.server.process.pid, signal.SIGKILL)
        self.server.__exit__()

    def start(self):
        self.server = Process(self._folder, "--port", self.port)


def test_a_connection_that_is_lost(tmp_path):
    """kill -9 of the server; sockets that drop; a proxy that lets no events through; metrics.jsonl written again."""
    folder = make_run(tmp_path / "root", process=own(), beat=beat(age=-3600), lines=metrics(range(1, 11)))
    file, torn = Metrics(folder / "metrics.jsonl"), metrics([6])
    with Restarted(tmp_path) as studio, Forwarder(studio.port) as network:
        direct, address = studio.server.address, f"http://127.0.0.1:{network.port}/#token={studio.server.token}"

        def events():
            return [head for head in network.heads if "/api/run/events" in head]

        def through_the_network():
            yield ("go", address)
            yield ("wait_for", "document.querySelector('table.runs') && !location.hash.includes('token')")
            yield ("go", f"http://127.0.0.1:{network.port}/#/run/run")

        killed = [
            ("wait_for", ".runs"),
            ("go", f"{direct.partition('#')[0]}#/run/run"),
            points(*range(1, 11)),
            ("wait_for", ".chart canvas"),
            ("run", "window.canvas = document.querySelector('.chart canvas')"),
            ("do", studio.kill),
            file.add(metrics([11])),
            ("wait_for", ".run-head .notice.warn"),
            ("ask", "said", "document.querySelector('.run-head .notice.warn').textContent"),
            ("ask", "kept", POINTS),
            ("do", studio.start),
            points(*range(1, 12)),
            ("wait_for", "!document.querySelector('.run-head .notice')"),
            file.add(metrics([12])),
            points(*range(1, 13)),
            ("ask", "same chart", "window.canvas.isConnected"),
        ]
        dropped = [
            *through_the_network(),
            points(*range(1, 13)),
            file.add(metrics([13])),
            points(*range(1, 14)),
            ("do", network.cut),
            file.add(metrics([14])),
            points(*range(1, 15)),
            ("do", lambda: resumed.extend(events())),
            ("do", lambda: setattr(network, "refused", "/api/run/events")),
            ("do", network.cut),
            file.add(metrics([15])),
            points(*range(1, 16)),
            ("wait_for", "!document.querySelector('.run-head .notice')"),
        ]
        written_again = [
            file.replace(metrics(range(1, 6)) + torn[:-9]),  # seen by questions
            points(*range(1, 6)),
            file.add(torn[-9:]),
            points(*range(1, 7)),
            ("do", lambda: setattr(network, "refused", "")),
            ("reload",),
            points(*range(1, 7)),
            file.replace(metrics(range(1, 4)) + metrics([4])[:-9]),  # seen by events
            points(*range(1, 4)),
            file.add(metrics([4])[-9:] + metrics([5], loss=0.5)),
            points(*range(1, 6)),
            ("ask", "last", "document.querySelector('.chart table.numbers tr:last-child td:last-child').textContent"),
        ]
        resumed = []
        seen = visit(url=direct, actions=[*killed, *dropped, *written_again])
        questions = [head for head in network.heads if "/api/run/metrics?" in head]
    assert "connection" in seen.results["said"] and seen.results["kept"] == [*range(1, 11)]
    assert seen.results["same chart"]
    assert len(resumed) == 2 and "last-event-id:" in resumed[1].lower() and questions
    assert seen.results["last"] == "0.5"
    check(seen, direct, address)
