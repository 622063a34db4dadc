"""How long the studio's server takes for its table of runs, for the curves of a long run, and while somebody watches.

  python -m tests.benchmarks.studio
  python -m tests.benchmarks.studio --runs 20 --lines 10000 --watch 10
  python -m tests.benchmarks.studio --browser

Makes run folders as `train` leaves them: `--runs` of them with 1,000 lines of metrics each, and one with `--lines`, of
which every hundredth has held-out values. The server is a process of its own, and is asked over HTTP, one request at a
time. "first" is the first request of a new server; "then" the median of ten more; "after a line" the same after each
time a line was added. "CPU" is the time of the server's process for the same. In the last row a page has the event
stream of the long run open for `--watch` seconds, while a line is added each half second and a heartbeat every two; its
time is the median from the writing of a line to its arrival, and its CPU is in percent of a core.

`--browser` adds pages in Chromium (PyQt6-WebEngine, without a GPU): medians of five reloads, from the navigation to the
first content that is painted, and to the frame with the table of all runs, or with the curves of the long run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from tests.browser import visit
from tests.web.folders import beat, make_checkpoint, make_run, own, write
from tests.web.process import Process

_LINES = 1000
_TIMES = 10
_RELOADS = 5
_PAGES = (
    ("the table in a browser", "", "table.runs tbody tr"),
    ("all its rows in a browser", "", "table.runs tbody tr:nth-child(%d)"),
    ("the long run in a browser", "run/long", ".chart canvas"),
    ("all its curves in a browser", "run/long?tab=curves", ".chart:nth-child(7) canvas"),
)
# When an element is there and its frame is drawn.
_EARLY = """(() => {
  const look = () => {
    if (!document.querySelector(%s)) return;
    watch.disconnect();
    requestAnimationFrame(() => setTimeout(() => { window.shownAt = performance.now(); }));
  };
  const watch = new MutationObserver(look);
  watch.observe(document, { childList: true, subtree: true });
})()"""


def main(argv: list[str]) -> dict[str, Any]:
    """Runs the benchmark; returns what `--json` prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="folders (default: %(default)s)")
    parser.add_argument("--lines", type=int, default=100_000, help="of the long run's metrics (default: %(default)s)")
    parser.add_argument("--watch", type=float, default=30.0, help="seconds (default: %(default)s)")
    parser.add_argument("--browser", action="store_true", help="also measure pages in Chromium")
    parser.add_argument("--json", action="store_true", help="print the results as a last line of JSON, too")
    args = parser.parse_args(argv)
    results: dict[str, Any] = {}
    print(f"{'what':32}{'first ms':>10}{'CPU ms':>10}{'then ms':>10}{'CPU ms':>10}{'kB':>10}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        long = make_folders(folder / "root", args.runs, args.lines)
        with Process(folder, "--port", 0, "--read-only") as server:
            process = psutil.Process(server.process.pid)
            for name, path, change in _requests(long, args.lines):
                results[name] = row = _measure(server, process, path, change)
                print(f"{name:32}" + "".join(f"{number:10.1f}" for number in row.values()))
            results["watching"] = watched = watch(server, process, long, args.lines, args.watch)
            print(f"{'a page that watches':32}{'':20}{watched['delay']:10.1f}{watched['cpu_percent']:9.2f}%")
            if args.browser:
                results |= browse(server.address, args.runs + 1)
            results["megabytes"] = process.memory_info().rss / 1e6
            print(f"resident memory of the server: {results['megabytes']:.0f} MB")
    if args.json:
        print(json.dumps(results))
    return results


def _requests(long: Path, lines: int) -> list[tuple[str, str, Callable[[int], None]]]:
    def nothing(_: int) -> None:
        pass

    def add(i: int) -> None:
        append(long, lines + 1 + i)

    return [
        ("table of runs", "/api/runs", nothing),
        ("long run", "/api/run?run=long", nothing),
        ("curves of the long run", "/api/run/curves?run=long", nothing),
        ("curves after a line", "/api/run/curves?run=long", add),
        ("curves of a run of 1,000 lines", "/api/run/curves?run=run-0", nothing),
        ("two runs compared", "/api/compare?run=long&run=run-0", nothing),
        ("settings", "/api/run/settings?run=long&other=run-0", nothing),
    ]


def make_folders(root: Path, runs: int, lines: int) -> Path:
    """Writes the runs; returns the long one."""
    some = "".join(line_of(step) for step in range(1, _LINES + 1))
    for i in range(runs):
        folder = make_run(root, f"run-{i}", exit={"code": 0}, beat=beat("done"), lines=some, ledger={"align": {}})
        make_checkpoint(folder, "align", _LINES)
    long = make_run(root, "long", process=own(), beat=beat(step=lines), lines=some)
    write(long / "metrics.jsonl", "".join(line_of(step) for step in range(1, lines + 1)))
    return long


def line_of(step: int) -> str:
    """A line of metrics with the values that `train` writes."""
    values = {
        "accuracy": 0.5 + 1 / step,
        "gradient_norm": 22.104909896850586 / step,
        "learning_rate": 0.001 / step,
        "loss": 7.359847545623779 / step + 0.1 * (step % 7),
        "supervised_tokens": 148.0,
        "tokens": 1451.0,
        "step_seconds": 0.28901993600447895,
        "tokens_per_second": 5172.653556939518 + step % 13,
        "peak_memory_gib": 13.25,
    }
    if step % 100 == 0:
        values |= {"heldout_loss": 1 / step, "heldout_exact_match": 1 - 1 / step}
    return json.dumps({"stage": "align", "step": step, **values}) + "\n"


def append(folder: Path, step: int) -> None:
    """Adds a line, as `train` does."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line_of(step))


def _measure(server: Process, process: psutil.Process, path: str, change: Callable[[int], None]) -> dict[str, float]:
    times, used = [], [_seconds(process)]
    for i in range(_TIMES + 1):
        change(i)
        began = time.perf_counter()
        content = fetch(server, path)
        times.append(1000 * (time.perf_counter() - began))
        used.append(_seconds(process))
    return {
        "first": times[0],
        "first_cpu": 1000 * (used[1] - used[0]),
        "then": statistics.median(times[1:]),
        "then_cpu": 1000 * (used[-1] - used[1]) / _TIMES,
        "kilobytes": len(content) / 1000,
    }


def browse(address: str, runs: int) -> dict[str, dict[str, float]]:
    """Milliseconds of pages in a browser, medians: {page: {paint, whole}}; prints them."""
    found = {}
    for name, path, sign in _PAGES:
        page = f"{address.partition('#')[0]}#/{path}"
        steps = [("reload",), ("wait_for", "window.shownAt > 0")]
        ask = "[performance.getEntriesByName('first-contentful-paint')[0].startTime, window.shownAt]"
        actions: list[tuple[str, ...]] = [("wait_for", ".runs"), ("go", page)]
        for i in range(_RELOADS):
            actions += [*steps, ("ask", str(i), ask)]
        seen = visit(url=address, actions=actions, early=_EARLY % json.dumps(sign % runs if "%" in sign else sign))
        paint, whole = map(statistics.median, zip(*seen.results.values(), strict=True))
        found[name] = {"paint": paint, "whole": whole}
        print(f"{name:32}{'first paint':>20}{paint:10.1f}{'whole':>10}{whole:10.1f}")
    return found


def _seconds(process: psutil.Process) -> float:
    used = process.cpu_times()
    return used.user + used.system


def fetch(server: Process, path: str) -> bytes:
    """A reply's body."""
    connection = http.client.HTTPConnection(server.place, timeout=120)
    connection.request("GET", path, headers={"Authorization": f"Bearer {server.token}"})
    reply = connection.getresponse()
    content = reply.read()
    assert reply.status == 200, content[:500]
    return content


def watch(server: Process, process: psutil.Process, folder: Path, lines: int, seconds: float) -> dict[str, float]:
    """The delay of a line in milliseconds, and the server's share of a core, with a page that watches a run."""
    connection = http.client.HTTPConnection(server.place, timeout=120)
    connection.request("GET", "/api/run/events?run=long", headers={"Authorization": f"Bearer {server.token}"})
    reply = connection.getresponse()
    sent: dict[int, float] = {}
    ended = threading.Event()

    def write_lines() -> None:
        step = lines + 1000
        while not ended.wait(0.5):
            step += 1
            sent[step] = time.perf_counter()
            append(folder, step)
            if step % 4 == 0:
                write(folder / "heartbeats" / "0.json", beat(step=step) | {"time": time.time()})

    writer = threading.Thread(target=write_lines, daemon=True)
    reply.readline()
    began, used = time.perf_counter(), _seconds(process)
    writer.start()
    delays = []
    while time.perf_counter() - began < seconds or not delays:
        line = reply.readline()
        if line.startswith(b'data: {"lines"'):
            now = time.perf_counter()
            delays += [now - sent[found["step"]] for found in json.loads(line[6:])["lines"] if found["step"] in sent]
    elapsed, cpu = time.perf_counter() - began, _seconds(process) - used
    ended.set()
    writer.join()
    connection.close()
    return {"delay": 1000 * statistics.median(delays), "cpu_percent": 100 * cpu / elapsed}


if __name__ == "__main__":
    main(sys.argv[1:])
