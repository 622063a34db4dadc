"""What goes wrong around a page that stays open, in Chromium: it says so, recovers, and shows each point once."""

import errno
import json
import os
import re
import shutil
import signal
from urllib.parse import quote, unquote, urlsplit

import pytest

from jaxvlm.web import control, run_state
from jaxvlm.web import recipe_info as reading
from jaxvlm.web.run_state import read_run
from tests.browser import visit
from tests.web.folders import beat, make_run, make_studio, metrics, own, write
from tests.web.forwarder import Forwarder
from tests.web.process import Process
from tests.web.served import serving
from tests.web.stand_in import start, starts
from tests.web.waiting import wait_for

pytestmark = pytest.mark.browser

POINTS = "[...document.querySelectorAll('.chart table.numbers td:first-child')].map((e) => Number(e.textContent))"
BADGE = "document.querySelector('.run-state .badge')?.dataset.state"
# The browser's own words for a request that got no answer.
EXPECTED = re.compile(
    r"\d+: Failed to load resource: (net::ERR_\w+|the server responded with a status of (404|507) .*)"
)
# The page waits a tenth of what it would between two looks; when the browser itself asks again is the browser's.
HASTY = "const wait = window.setTimeout; window.setTimeout = (act, ms, ...rest) => wait(act, ms / 10, ...rest);"


def points(*steps):
    """Waits for the curve to have exactly these points."""
    return ("wait_for", f"JSON.stringify({POINTS}) == '{json.dumps([*steps], separators=(',', ':'))}'")


def check(seen, *addresses):
    """Nothing on the console but lost connections, no request for another origin."""
    assert [line for line in seen.console if not EXPECTED.fullmatch(line)] == []
    asked = {urlsplit(request).netloc for request in seen.requests if request != "about:blank"}
    assert asked == {urlsplit(one).netloc for one in addresses}


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
            yield ("do", lambda: setattr(network, "refused", "/api/runs"))
            yield ("wait_for", "main .notice.warn")
            yield ("ask", "rows", "document.querySelectorAll('table.runs tbody tr').length")
            yield ("do", lambda: setattr(network, "refused", ""))
            yield ("wait_for", "!document.querySelector('main .notice')")
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
            ("do", lambda: wait_for(lambda: len(events()) > len(resumed))),  # without a reload
            file.replace(metrics(range(1, 4)) + metrics([4])[:-9]),  # seen by events
            points(*range(1, 4)),
            file.add(metrics([4])[-9:] + metrics([5], loss=0.5)),
            points(*range(1, 6)),
            ("ask", "last", "document.querySelector('.chart table.numbers tr:last-child td:last-child').textContent"),
        ]
        removed = [
            ("do", lambda: shutil.rmtree(folder)),
            ("wait_for", "main .notice.bad"),
            ("ask", "removed", "document.querySelector('main').textContent"),
        ]
        resumed = []
        seen = visit(url=direct, actions=[*killed, *dropped, *written_again, *removed], early=HASTY)
        questions = [head for head in network.heads if "/api/run/metrics?" in head]
    assert "connection" in seen.results["said"] and seen.results["kept"] == [*range(1, 11)]
    assert seen.results["same chart"]
    assert len(resumed) == 2 and "last-event-id:" in resumed[1].lower() and questions
    assert seen.results["last"] == "0.5" and seen.results["rows"] == 1 and "run" in seen.results["removed"]
    check(seen, direct, address)


class FullDisk:
    """Lets the run's folder, or a recipe, not be written: as on a disk without space."""

    def __init__(self, studio, monkeypatch):
        self._recipes, self.is_full, self._write = studio.recipes, False, control.replace_text
        monkeypatch.setattr(control, "replace_text", self.write)

    def write(self, path, text):
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self._write(path, text)

    def fill(self):
        self.is_full = True

    def free(self):
        self.is_full = False

    def refuse_recipe(self, name):
        """The next writing of this recipe, by the kernel: its temporary file is a device that is always full."""
        (self._recipes / f".{name}.py.{os.getpid()}").symlink_to("/dev/full")


def text_of(selector):
    return f"document.querySelector({json.dumps(selector)})?.textContent"


# What a page asks of `plan` is kept instead of compiled.
KEEP_PLANS = """window.planned = []; const ask = window.fetch;
window.fetch = (url, about) => !String(url).endsWith("api/plan") ? ask(url, about)
  : (window.planned.push(JSON.parse(about.body)), new Promise(() => {}));"""


def test_a_full_disk_and_a_page_that_is_closed(studio, monkeypatch):
    """Nothing half-written keeps a second try away; and no closed page holds up a run that has much to say."""
    monkeypatch.setattr(
        reading, "_read", lambda base: reading.RecipeInfo(base, **json.loads(json.dumps(reading.describe(base))))
    )
    disk, run, left = FullDisk(studio, monkeypatch), studio.root / "talks", []
    refused = ".notice.bad .original"

    def finish():
        write(run / "finish", "")
        wait_for((run / "exit.json").exists)

    def look():
        left.append([run.exists(), (studio.recipes / "talks.py").exists(), *studio.recipes.glob(".*")])

    def has(name):
        return ("wait_for", f"{text_of(refused)}?.includes({json.dumps(name)})")

    with serving(studio) as address:
        base = address.partition("#")[0]
        actions = [
            ("wait_for", ".empty"),
            ("go", f"{base}#/new?goal=quickstart"),
            ("wait_for", ".preview pre"),
            ("click", ".steps li:nth-child(5) button:enabled"),
            ("click", "#devices .check:nth-child(2) input"),
            ("click", "#devices .check:nth-child(4) input"),
            ("click", "#devices .check:nth-child(2) input"),
            ("type", "#plan-records", "5000"),
            ("type", "#plan-price", "1.5"),
            ("press", "Tab"),
            ("press", "Enter"),
            ("wait_for", "planned.length == 1"),
            ("ask", "planned", "[planned[0].records, planned[0].price, planned[0].machine]"),
            ("click", ".steps li:nth-child(6) button:enabled"),
            ("click", "#run-name"),
            ("press", "Ctrl+A"),
            ("keys", "talks"),
            ("wait_for", f"{text_of('.preview pre')}.includes('talks')"),
            ("do", lambda: disk.refuse_recipe("talks")),
            ("click", "#start"),
            has(str(studio.recipes / "talks.py")),
            ("ask", "recipe", text_of(".notice.bad")),
            ("do", look),
            ("do", disk.fill),
            ("click", "#start"),
            has(str(run / "studio.json")),
            ("ask", "run", text_of(".notice.bad")),
            ("do", look),
            ("do", disk.free),
            ("click", "#start"),
            ("wait_for", f"location.hash == '#/run/talks' && {BADGE} == 'starting'"),
            ("go", "about:blank"),
            ("do", finish),
            ("go", f"{base}#/run/talks?tab=log"),
            ("wait_for", f"{text_of('.log')}?.includes('the last word')"),
            ("ask", "length", f"{text_of('.log')}.length"),
            ("ask", "state", BADGE),
        ]
        seen = visit(url=address, actions=actions, early=KEEP_PLANS)
    for place in ("recipe", "run"):
        assert "could not be written" in seen.results[place] and "No space left on device" in seen.results[place]
    assert left == [[False, False], [False, True]]
    assert seen.results["planned"] == [5000, 1.5, "here"]
    assert starts(studio, "talks")[0].endswith("|3")  # of the GPUs 0 to 3
    assert json.loads((run / "exit.json").read_text())["code"] == 0 and seen.results["state"] == "done"
    assert (run / "studio.log").stat().st_size > 10e6 and seen.results["length"] <= 2**16
    check(seen, address)


def test_processes_that_stall_and_end(studio, monkeypatch):
    """SIGSTOP and SIGCONT, kill -9, a number that another process has: the page follows, and says what to do."""
    monkeypatch.setattr(run_state, "SILENT_SECONDS", 3.0)
    start(studio, "beats", recipe="beats")
    folder = studio.root / "beats"
    wait_for((folder / "heartbeats" / "0.json").exists)
    child = read_run(folder).child
    write(folder / "process.json", child)
    make_run(studio.root, "reused", process=own() | {"start_ticks": "0"}, beat=beat(), lines=metrics([1]))
    says = text_of(".run-state .says")

    def become(state):
        yield ("wait_for", f"{BADGE} == '{state}'")
        yield ("ask", state, text_of(".run-head"))
        yield ("ask", f"{state} can", "[...document.querySelectorAll('[data-action]')].map((e) => e.dataset.action)")

    with serving(studio) as address:
        base = address.partition("#")[0]
        actions = [
            ("wait_for", ".runs"),
            ("go", f"{base}#/run/beats"),
            *become("training"),
            ("do", lambda: os.kill(child["pid"], signal.SIGSTOP)),
            *become("silent"),
            ("run", f"window.before = {says}"),
            ("wait_for", f"{says} != window.before"),
            ("do", lambda: os.kill(child["pid"], signal.SIGCONT)),
            *become("training"),
            ("do", lambda: os.kill(child["pid"], signal.SIGKILL)),
            *become("killed"),
            ("go", f"{base}#/run/reused"),
            *become("lost"),
        ]
        seen = visit(url=address, actions=actions)
    found = seen.results
    assert "has written nothing for" in found["silent"] and "stop the run" in found["silent"]
    assert "kill" in found["silent can"]
    assert "silent" not in found["training"].lower() and found["training can"] == ["stop"]
    assert "signal 9" in found["killed"] and "memory ran out" in found["killed"] and found["killed can"] == ["resume"]
    assert "Resume continues" in found["lost"] and not {"stop", "kill"} & {*found["lost can"]}
    check(seen, address)


ODD = ["<script>alert(1)</script>", "a b", "group/it's", '"quoted"', "实验 一", "&amp;", "a%2fb", "a?b#c", "new\nline"]
BROKEN = {"torn": '{"model": ', "list": "[]", "<b>bytes</b>": "\x00"}


def test_two_hundred_runs_with_odd_names_and_broken_folders(tmp_path):
    studio = make_studio(tmp_path)
    for i in range(200 - len(ODD)):
        make_run(studio.root, f"run-{i}", lines=metrics(range(1, 50)), exit={"code": i % 3})
    for name in ODD:
        make_run(studio.root, name, lines=metrics([1]))
    for path in (studio.root / "run-5").iterdir():
        os.utime(path, (1e9, 1e9))  # its age in words stays the same
    for name, text in BROKEN.items():
        write(studio.root / name / "config.json", text)
    rows = "document.querySelectorAll('table.runs tbody tr').length"
    with serving(studio) as address:
        base = address.partition("#")[0]
        actions = [
            ("wait_for", f"{rows} == 200"),
            ("ask", "names", "[...document.querySelectorAll('td.name a')].map((e) => e.textContent)"),
            ("ask", "elements", "document.querySelectorAll('td.name a *, script:not([src]), code *').length"),
            ("ask", "links", "[...document.querySelectorAll('td.name a')].map((e) => e.hash)"),
            ("ask", "broken", text_of("main details")),
        ]
        actions += [
            ("run", "window.kept = document.querySelector('a[href=\"#/run/run-5\"]')"),
            Metrics(studio.root / "run-6" / "metrics.jsonl").add(metrics([1234])),
            ("wait_for", "document.querySelector('main tbody tr').innerText.match(/run-6[^]*1,234/)"),
            ("ask", "kept", "window.kept.isConnected"),
        ]
        for name in ODD:
            link = "#/run/" + "/".join(quote(part, safe="!~*'()") for part in name.split("/"))
            title = f"{text_of('main h1')} == {json.dumps(name.rpartition('/')[2])}"
            is_clicked = "<" in name  # each is a link of the table; to come back draws all of it
            actions += [
                ("click", f'td.name a[href="{link}"]') if is_clicked else ("go", base + link),
                ("wait_for", f"{title} && document.querySelector('.tab-panel .chart canvas')"),
                ("ask", f"crumbs of {name}", text_of(".crumbs span")),
            ]
        seen = visit(url=address, actions=actions)
    found = seen.results
    assert sorted(found["names"]) == sorted([*ODD, *(f"run-{i}" for i in range(200 - len(ODD)))])
    assert found["kept"] and found["elements"] == 0 and all(name in found["broken"] for name in BROKEN)
    assert all(found[f"crumbs of {name}"] == name for name in ODD)
    assert {unquote(link) for link in found["links"]} == {f"#/run/{name}" for name in found["names"]}
    check(seen, address)
