"""The state of a run in every condition, and what its page and the table say of it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from jaxvlm.process_identity import identity
from jaxvlm.web.run_detail import detail
from jaxvlm.web.run_list import list_runs, summary
from jaxvlm.web.run_state import ACTIVE, read_run, state_of
from tests.web.folders import (
    CONFIG,
    GONE,
    PNG,
    beat,
    client,
    make_checkpoint,
    make_run,
    make_studio,
    metrics,
    own,
    write,
)

ELSEWHERE = GONE | {"host": "other.host"}
ENDED = {"signal": None, "time": 1.0}
LEDGER = {"align": {"read": 1}, "finetune": {"read": 1}}


@pytest.fixture
def studio(tmp_path):
    return make_studio(tmp_path)


@pytest.mark.parametrize(
    ("state", "files"),
    [
        ("starting", {"process": own()}),
        ("starting", {"studio": {"launcher": own()}}),
        ("starting", {"process": own(), "beat": beat("start")}),
        ("starting", {"process": own(), "beat": beat("step", age=99, pid=1)}),  # of the process before it
        ("starting", {"studio": {"launcher": own()}, "beat": beat("done", age=99)}),  # the same
        ("compiling", {"process": own(), "beat": beat("compile")}),
        ("training", {"process": own(), "beat": beat("step")}),
        ("training", {"process": own(), "beat": beat("data")}),
        ("training", {"process": own(), "beat": beat("step", age=-3600)}),  # the clock was set back
        ("saving", {"process": own(), "beat": beat("save")}),
        ("evaluating", {"process": own(), "beat": beat("evaluate")}),
        ("silent", {"process": own(), "beat": beat("step", age=31)}),
        ("done", {"process": GONE, "exit": {"code": 0, **ENDED}, "beat": beat("done")}),
        ("done", {"process": own(), "exit": {"code": 0, **ENDED}, "beat": beat("step", age=99)}),  # it is about to end
        ("paused", {"process": GONE, "exit": {"code": 75, **ENDED}}),
        ("stopped", {"process": GONE, "exit": {"code": 130, **ENDED}}),
        ("stopped", {"process": GONE, "exit": {"code": None, "signal": 15}}),  # before it could save
        ("mistake", {"studio": {"launcher": GONE}, "exit": {"code": 2, **ENDED}}),
        ("crashed", {"process": GONE, "exit": {"code": 1, **ENDED}}),
        ("crashed", {"process": GONE, "exit": {"code": 77, **ENDED}}),
        ("crashed", {"process": GONE, "exit": {"code": "?"}}),
        ("killed", {"process": GONE, "exit": {"code": None, "signal": 9}}),
        ("lost", {"process": GONE, "beat": beat("step", pid=GONE["pid"])}),
        ("lost", {"process": own() | {"start_ticks": "0"}, "beat": beat("step")}),  # another process has its number
        ("lost", {"process": own() | {"boot_id": "old"}, "beat": beat("step")}),  # the machine was started again
        ("lost", {"studio": {"launcher": GONE, "command": []}}),
        ("elsewhere", {"process": ELSEWHERE, "beat": beat("step", host="other.host", pid=1)}),
        ("elsewhere", {"process": ELSEWHERE}),
        ("paused", {"process": ELSEWHERE, "exit": {"code": 75, **ENDED}}),
        # Runs that left no process.json.
        ("training", {"beat": beat("step")}),
        ("lost", {"beat": beat("step", age=31)}),
        ("lost", {"beat": beat("step", pid=GONE["pid"])}),
        ("lost", {"beat": beat("done")}),
        ("done", {"beat": beat("done"), "ledger": LEDGER}),
        ("done", {"beat": beat("done", host="other.host"), "ledger": LEDGER}),
        ("elsewhere", {"beat": beat("step", host="other.host")}),
        ("done", {"ledger": LEDGER}),
        ("lost", {"ledger": {"align": {}}}),
        ("done", {"source": {}}),  # imported weights
        ("stopped", {"studio": {"launcher": None}}),  # taken out of the queue
        ("lost", {}),
    ],
)
def test_states(tmp_path, state, files):
    assert state_of(read_run(make_run(tmp_path, **files))) == state


def test_a_stopped_process_becomes_silent(studio):
    """SIGSTOP: it is alive, and its heartbeat is as old as it is."""
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    os.kill(child.pid, signal.SIGSTOP)
    make_run(studio.root, process=identity(child.pid), beat=beat("step", age=40, pid=child.pid))
    found = detail(studio, "run")
    assert found["state"] == "silent" and found["error"]["advice"] == "silent_wait" and found["can"]["kill"]
    child.kill()
    child.wait()
    assert detail(studio, "run")["state"] == "lost" and detail(studio, "run")["error"]["advice"] == "lost_restart"


def test_a_queued_run(studio):
    make_run(studio.root, config=None, studio={"launcher": None, "created": 5.0})
    studio.queue.add("run")
    line = summary(studio, "run")
    assert line["state"] == "queued" and line["queue_place"] == 1 and line["started"] == 5.0
    studio.queue.remove(1)
    assert summary(studio, "run")["state"] == "stopped"


# --- the table


def test_a_line(studio):
    lines = metrics(range(1, 31)) + json.dumps({"stage": "align", "step": 30, "heldout_loss": 0.5}) + "\n"
    make_run(studio.root, "group/run", process=own() | {"time": 7.0}, beat=beat(step=31), lines=lines)
    line = summary(studio, "group/run")
    assert line["id"] == "group/run" and line["name"] == "run" and line["path"] == str(studio.root / "group" / "run")
    assert (line["stage"], line["step"], line["steps"]) == ("align", 31, 50) and line["eta_seconds"] == 19 * 0.5
    assert line["loss"] == pytest.approx(1 / 3) and line["heldout_loss"] == 0.5 and line["exact_match"] is None
    assert len(line["spark"]) == 30 and line["spark"][0] == 10
    assert line["host"] == os.uname().nodename and line["started"] == 7.0 and line["family"] == "llava"
    assert line["trainable"] == "lora" and line["device"] is None and line["queue_place"] is None


def test_the_last_values_are_of_the_metrics_after_the_end(studio):
    """The last heartbeat may be of the step before."""
    make_run(
        studio.root, process=GONE, exit={"code": 0}, beat=beat(step=31, pid=GONE["pid"]), lines=metrics(range(1, 51))
    )
    line = summary(studio, "run")
    assert (line["step"], line["steps"], line["eta_seconds"]) == (50, 50, None)


def test_a_run_in_its_test_is_at_its_last_step(studio):
    make_run(studio.root, process=own(), beat=beat("evaluate", step=0), lines=metrics(range(1, 51)))
    line = summary(studio, "run")
    assert (line["state"], line["step"], line["steps"]) == ("evaluating", 50, 50)


def test_a_changed_file_is_read_again(studio):
    folder = make_run(studio.root, lines=metrics(range(1, 4)))
    assert summary(studio, "run")["step"] == 3
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(metrics(range(4, 6)))
    assert summary(studio, "run")["step"] == 5
    write(folder / "exit.json", {"code": 75})
    assert summary(studio, "run")["state"] == "paused"


NAMES = [
    "a b",
    "it's",
    '"quoted"',
    "实验 一",
    "<script>alert(1)</script>",
    "&amp;",
    "a%2fb",
    "a?b#c",
    "-rf",
    "new\nline",
]


def test_names_are_texts(studio):
    for name in NAMES:
        make_run(studio.root, name, lines=metrics([1]))
    reply = client(studio).get("/api/runs")
    assert reply.headers["content-type"] == "application/json"
    assert {run["id"] for run in reply.json()["runs"]} == set(NAMES)
    for name in NAMES:
        found = client(studio).get("/api/run", params={"run": name})
        assert found.status_code == 200 and found.json()["name"] == name.rpartition("/")[2]


def test_broken_folders_break_no_list(studio):
    make_run(studio.root, "good", lines=metrics([1]))
    for name, text in {"torn": '{"model": ', "list": "[]", "deep": "[" * 100_000, "bytes": "\x00"}.items():
        write(studio.root / name / "config.json", text)
    make_run(
        studio.root, "odd", config={"model": 5, "stages": "x", "stage": [], "z": None}, beat={"time": "?", "pid": "x"}
    )
    make_run(studio.root, "odder", process={"pid": True, "host": None}, exit={"code": [1]}, studio={"launcher": "x"})
    make_run(studio.root, "damaged", process="}", lines="\x00\xff{\n[]\n{}\n" + metrics([7]) + '{"stage": "align", "st')
    (studio.root / "folder" / "config.json").mkdir(parents=True)
    (studio.root / "empty").mkdir()
    write(studio.root / "file", "")
    (studio.root / "dangling").symlink_to(studio.root / "nowhere")
    os.mkdir(os.fsencode(studio.root) + b"/not\xffutf8")
    write(studio.root / os.fsdecode(b"not\xffutf8") / "config.json", CONFIG)
    found = client(studio).get("/api/runs").json()
    assert {run["id"] for run in found["runs"]} == {"good", "odd", "odder"}
    broken = {entry["name"]: entry["problem"] for entry in found["broken"]}
    assert broken.keys() == {"torn", "list", "deep", "bytes", "damaged", "not?utf8"}
    assert broken["torn"] == "config.json cannot be read" and broken["damaged"] == "process.json cannot be read"
    assert found["looked_in"] == str(studio.root)
    for name in ("good", "odd", "odder", "torn", "damaged"):
        for path in ("run", "run/curves", "run/settings", "run/log", "run/curves.csv"):
            assert client(studio).get(f"/api/{path}", params={"run": name}).status_code == 200, (name, path)


def test_an_exported_model_is_no_run(studio):
    make_run(studio.root, "export", config={"model_type": "llava", "architectures": []})
    assert list_runs(studio) | {"looked_in": ""} == {"runs": [], "broken": [], "looked_in": ""}


def test_an_empty_or_missing_root(tmp_path):
    studio = make_studio(tmp_path)
    assert list_runs(studio)["runs"] == []
    shutil.rmtree(studio.root)
    assert list_runs(studio)["runs"] == []


# --- the page of a run


def test_detail(studio):
    folder = make_run(
        studio.root,
        process=own(),
        beat=beat("data", stage="finetune", step=30),
        ledger={"align": {"read": 9}},
        lines=metrics(range(1, 51)) + metrics(range(1, 31), "finetune"),
    )
    make_checkpoint(folder, "align", 50)
    make_checkpoint(folder, "finetune", 20, 80)
    make_checkpoint(folder, "finetune", 10, 80)
    (make_checkpoint(folder, "finetune", 25, 80) / "params" / "data").write_bytes(b"torn")
    (folder / "checkpoints" / "finetune" / "28.orbax-checkpoint-tmp").mkdir()
    (folder / "samples.png").write_bytes(PNG)
    write(folder / "evaluations" / "pope.json", {"scores": {"accuracy": 0.8}})
    found = detail(studio, "run")
    assert found["state"] == "training" and found["phase"] == "data" and found["phase_seconds"] == 1.5
    assert found["stages"] == [
        {"name": "align", "step": 50, "steps": 50, "over": True},
        {"name": "finetune", "step": 30, "steps": 50, "over": False},
    ]
    places = [(checkpoint["stage"], checkpoint["step"]) for checkpoint in found["checkpoints"]]
    assert places == [("align", 50), ("finetune", 10), ("finetune", 20)]
    assert all(checkpoint["bytes"] > 5 for checkpoint in found["checkpoints"])  # 5 of weights, and the other files
    assert found["lost_on_kill"] == {"steps": 10, "checkpoint_step": 20, "seconds": 5.0}
    assert found["ledger"] == {"align": {"read": 9}} and found["suites"] == ["pope"]
    assert {file["name"] for file in found["files"]} == {"config.json", "metrics.jsonl", "ledger.json", "samples.png"}
    assert found["can"] == {"stop": True, "kill": True, "resume": False, "delete": False}
    assert found["error"] is None and found["recipe"] is None and found["launched_by_studio"] is False


@pytest.mark.parametrize(
    ("ended", "log", "line", "advice"),
    [
        ({"code": 2}, "x\nerror: no recipe at a.py\n", "no recipe at a.py", "fix_recipe"),
        ({"code": 1}, "Traceback\n  File\nKeyError: 3\n\n", "KeyError: 3", "see_log"),
        ({"code": 2, "message": "bad key"}, "error: other\n", "bad key", "fix_recipe"),
        ({"code": 2}, "error: a device has too little memory\n", "a device has too little memory", "out_of_memory"),
        ({"code": 1}, "jax: RESOURCE_EXHAUSTED: 5 GiB\nlast\n", "last", "out_of_memory"),
        (
            {"code": 1},
            "OSError: [Errno 28] No space left on device\n",
            "OSError: [Errno 28] No space left on device",
            "disk_full",
        ),
        ({"code": None, "signal": 9}, "step 5\r\x1b[31mstep 6\x1b[0m", "step 6", "killed_by_system"),
        ({"code": None, "signal": 9}, "", "", "killed_by_system"),
    ],
)
def test_errors(studio, ended, log, line, advice):
    folder = make_run(studio.root, studio={"launcher": GONE}, exit=ended)
    write(folder / "studio.log", "line\n" * 100 + log)
    error = detail(studio, "run")["error"]
    assert error["line"] == line or not log
    assert error["advice"] == advice and len(error["tail"]) == 40


@pytest.mark.parametrize("state", ["paused", "stopped", "elsewhere"])
def test_states_without_an_error_have_advice_too(studio, state):
    files = {"paused": {"exit": {"code": 75}}, "stopped": {"exit": {"code": 130}}, "elsewhere": {"process": ELSEWHERE}}
    make_run(studio.root, **files[state])
    found = detail(studio, "run")
    assert found["state"] == state and found["error"] is None
    assert found["advice"] == ("watch_only" if state == "elsewhere" else "resume")


def test_every_state_is_reached():
    given = {mark.args[1][i][0] for mark in test_states.pytestmark for i in range(len(mark.args[1]))}
    assert given | {"queued"} == {
        *("queued", "starting", "compiling", "training", "saving", "evaluating", "done", "paused", "stopped"),
        *("mistake", "crashed", "killed", "silent", "lost", "elsewhere"),
    }
    assert set(ACTIVE) < given


def test_a_listing_opens_no_large_file(studio, monkeypatch):
    """200 runs: of the metrics, only pieces are read."""
    folder = make_run(studio.root, lines=metrics(range(1, 20_001)))
    read = []
    original = os.pread
    monkeypatch.setattr(
        os, "pread", lambda descriptor, size, place: read.append(size) or original(descriptor, size, place)
    )
    line = summary(studio, "run")
    assert line["step"] == 20_000 and len(line["spark"]) == 40 and line["spark"][-1] == pytest.approx(10 / 20_000)
    assert sum(read) < (folder / "metrics.jsonl").stat().st_size / 3
    read.clear()
    assert summary(studio, "run") == line and read == []


def test_time_is_of_the_files(studio):
    folder = make_run(studio.root, lines=metrics([1]))
    before = time.time() - 1000
    for path in folder.rglob("*"):
        os.utime(path, (before, before))
    assert summary(studio, "run")["updated"] == pytest.approx(before, abs=0.2)
