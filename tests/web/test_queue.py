"""Runs that wait for devices, with small processes in the place of trainings."""

import json
import sys

from jaxvlm.web import control
from jaxvlm.web.run_detail import detail
from jaxvlm.web.run_state import read_run
from tests.web.folders import client, make_studio, write
from tests.web.stand_in import ask, error, queue, start, starts, state
from tests.web.waiting import wait_for


def test_devices(studio, monkeypatch):
    start(studio, devices=[1, 3])
    wait_for(lambda: starts(studio))
    assert starts(studio)[0].endswith("|1,3") and detail(studio, "run")["device"] == "1, 3"
    for devices in ([], [4], ["1"], [1.0], [True], [-1]):
        assert error(start(studio, "other", devices=devices)) == (422, "bad_devices")
    monkeypatch.setattr(control, "gpus", lambda: [])
    assert "none" in start(studio, "other", devices=[0]).json()["error"]["message"]


def test_devices_that_another_has(studio):
    start(studio, "one", devices=[0, 1])
    reply = start(studio, "two", devices=[1, 2], share=False)
    assert error(reply) == (409, "devices_busy") and reply.json()["error"]["facts"]["who"][0]["id"] == "one"
    assert error(start(studio, "two", share=False)) == (409, "devices_busy")  # all devices
    assert not (studio.root / "two").exists()
    assert start(studio, "two", devices=[2], share=False).status_code == 200


def test_the_queue(studio):
    start(studio, "now")
    for name in ("a", "b", "c", "d"):
        assert start(studio, name, when="queue").json() == {"run": name}
    assert queue(studio) == ["a", "b", "c", "d"] and state(studio, "c") == "queued" and not starts(studio, "a")
    assert error(ask(studio, "run/resume", run="a")) == (409, "not_ended")
    assert error(ask(studio, "run/stop", run="a")) == (409, "not_running")
    items = client(studio).get("/api/queue").json()
    assert [(item["place"], item["id"]) for item in items["items"]] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert items["running"][0]["id"] == "now" and items["gpus"] == [0, 1, 2, 3]
    assert [item["run"] for item in ask(studio, "queue/move", id=3, place=1).json()["items"]] == ["c", "a", "b", "d"]
    ask(studio, "queue/move", id=1, place=99)
    assert queue(studio) == ["c", "b", "d", "a"]
    ask(studio, "queue/remove", id=2)
    assert queue(studio) == ["c", "d", "a"] and state(studio, "b") == "stopped"
    for path in ("queue/move", "queue/remove"):
        assert error(ask(studio, path, id=2, place=1)) == (404, "not_queued")

    assert studio.queue.advance() == []
    write(studio.root / "now" / "finish", "")
    wait_for(lambda: state(studio, "now") == "done" and not read_run(studio.root / "now").anything_runs())
    after_restart = make_studio(studio.root.parent)
    assert after_restart.queue.advance() == ["c"] and queue(studio) == ["d", "a"]
    assert after_restart.queue.advance() == []
    wait_for(lambda: starts(studio, "c"))
    ask(studio, "run/stop", run="c")  # a paused run blocks nobody
    wait_for(lambda: state(studio, "c") == "paused" and not read_run(studio.root / "c").anything_runs())
    assert after_restart.queue.advance() == ["d"]


def test_each_device_has_a_queue(studio):
    start(studio, "one", devices=[0])
    for name, devices in {"a": [0], "b": [1, 2], "c": [2], "d": [0], "e": [3]}.items():
        start(studio, name, when="queue", devices=devices)
    assert studio.queue.advance() == ["b", "e"] and queue(studio) == ["a", "c", "d"]


def test_nobody_overtakes_a_run_that_waits_for_all_devices(studio):
    start(studio, "one", devices=[0])
    start(studio, "all", when="queue")
    start(studio, "small", when="queue", devices=[3])
    assert studio.queue.advance() == []


def test_what_has_devices_besides_runs(studio):
    task = studio.tasks.start("chat", [sys.executable, "-S", "-c", "import time; time.sleep(60)"], {})
    start(studio, "a", when="queue")
    assert studio.queue.advance() == [] and studio.queue.holders([0])[0]["kind"] == "chat"
    studio.tasks.cancel(task)
    wait_for(lambda: studio.tasks.get(task)["state"] == "cancelled")
    assert studio.queue.advance() == ["a"]


def test_a_run_that_cannot_start_leaves_the_queue_with_its_reason(studio, capsys):
    start(studio, "a", when="queue")
    entry = json.loads((studio.root / "a" / "studio.json").read_text())
    write(studio.root / "a" / "studio.json", entry | {"command": ["/nowhere/python"]})
    start(studio, "b", when="queue")
    assert studio.queue.advance() == ["a", "b"] or studio.queue.advance() == ["b"]
    assert queue(studio) == [] and state(studio, "a") == "crashed"
    assert "No such file" in detail(studio, "a")["error"]["line"]


def test_an_entry_of_a_run_that_has_started_is_dropped(studio):
    """The server was ended between the start and the removal of the entry."""
    start(studio, "a")
    wait_for(lambda: starts(studio, "a"))
    write(studio.root / "a" / "finish", "")
    wait_for(lambda: not read_run(studio.root / "a").anything_runs())
    studio.queue.add("a")
    studio.queue.advance()
    assert queue(studio) == [] and len(starts(studio, "a")) == 1 and state(studio, "a") == "done"


def test_broken_entries(studio):
    for name, text in {
        "1.json": "{",
        "x.json": "{}",
        "2.json": '{"run": 5}',
        "3.json": '{"run": "../x", "order": "y"}',
    }.items():
        write(studio.root / ".studio" / "queue" / name, text)
    assert queue(studio) == ["../x"]
    studio.queue.advance()
    assert queue(studio) == [] and not (studio.root.parent / "x").exists()
