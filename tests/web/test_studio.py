"""The command: its mistakes, its address, its end; and a run that outlives it."""

import json
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest

from jaxvlm import studio
from jaxvlm.command import run
from jaxvlm.listening import bind
from jaxvlm.web.running import owner_of, take_root
from jaxvlm.web.studio import read_token
from tests.test_imports import HEAVY, imported
from tests.web.folders import make_run, metrics, write
from tests.web.process import Process
from tests.web.waiting import wait_for

LONG = 900.0  # seconds, for a training on a busy machine
CHILD = "import time\nfor i in range(600): print(i, flush=True); time.sleep(0.1)"


def fail(capsys, *arguments):
    capsys.readouterr()
    assert run(studio.main, list(map(str, arguments))) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1 and "Traceback" not in errors
    return errors


def test_mistakes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file", "")
    errors = fail(
        capsys, "--data", "none", "--root", "file", "--recipes", "file", "--prefix", "x/", "--allow-host", "http://a"
    )
    for text in ("--data none", "--root file", "--recipes file", "--prefix x/", "--allow-host http://a"):
        assert text in errors
    for prefix in ("/", "/x/", "/x//y", "/x y", "/<b>"):
        assert "--prefix" in fail(capsys, "--prefix", prefix)
    assert "--allow-host" in fail(capsys, "--host", "0.0.0.0") and "--allow-host" in fail(capsys, "--host", "::")
    assert "--host nowhere.invalid" in fail(capsys, "--host", "nowhere.invalid", "--port", 0)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_only_this_machine_unless_named():
    assert studio._parser().parse_args([]).host == "127.0.0.1"


def test_a_full_disk_leaves_no_half_a_token(tmp_path, monkeypatch):
    """An empty file would keep every later start away."""

    def full(descriptor, mode):
        os.close(descriptor)
        return Path("/dev/full").open(mode)

    with monkeypatch.context() as disk:
        disk.setattr(os, "fdopen", full)
        with pytest.raises(OSError, match="No space left on device.*token"):
            read_token(tmp_path)
    assert len(read_token(tmp_path)) > 40


def test_a_taken_port_names_its_owner(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with bind("127.0.0.1", 0, owner_of=owner_of) as taken:
        port = taken.getsockname()[1]
        assert owner_of(port) == os.getpid()
        assert f"--port {port}: it is in use by process {os.getpid()}" in fail(capsys, "--port", port)
    assert owner_of(port) is None and not (tmp_path / "runs").exists()


def test_one_studio_a_root(tmp_path, capsys):
    lock = take_root(tmp_path)
    assert f'"process": {os.getpid()}' in fail(capsys, "--root", tmp_path, "--port", 0)
    lock.release()


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        ((), "http://127.0.0.1:7860/#token="),
        (("--prefix", "/lab"), "http://127.0.0.1:7860/lab/#token="),
        (("--host", "::1"), "http://[::1]:7860/#token="),
        (("--host", "10.0.0.1"), "http://10.0.0.1:7860/#token="),
        (("--host", "0.0.0.0", "--allow-host", "lab"), "http://lab:7860/#token="),
        (("--host", "0.0.0.0", "--allow-host", "lab:80"), "http://lab:80/#token="),
    ],
)
def test_addresses(tmp_path, capsys, arguments, start):
    args = studio._parser().parse_args(["--root", str(tmp_path), *arguments])
    made = studio._studio(args)
    address = studio._address(args, 7860, made)
    studio._announce(args, address)
    printed = capsys.readouterr()
    assert printed.out == f"studio: {start}{made.token}\n" and len(made.token) >= 43
    assert ("plain HTTP" in printed.err and "ssh -L" in printed.err) == (
        "--host" in arguments and "::1" not in arguments
    )
    assert made.allowed_hosts == {"10.0.0.1": ("10.0.0.1",), "lab": ("lab",), "lab:80": ("lab:80",)}.get(
        (arguments or ("",))[-1], ()
    )


def test_the_server_imports_no_jax():
    code = (
        "import importlib, pkgutil, jaxvlm.web as web\n"
        "for found in pkgutil.walk_packages(web.__path__, 'jaxvlm.web.'):\n    importlib.import_module(found.name)"
    )
    assert imported(code, (*HEAVY, "fastapi", "pydantic")) == []


def start_child(server, tmp_path):
    """A run whose command is `CHILD`, through the files that the studio itself writes."""
    folder = make_run(tmp_path / "root", "child", config=None)
    entry = {"command": [sys.executable, "-S", "-c", CHILD], "cwd": str(tmp_path), "devices": None, "launcher": None}
    write(folder / "studio.json", entry)
    write(tmp_path / "root" / ".studio" / "queue" / "1.json", {"run": "child"})
    wait_for(lambda: "2\n" in server.ask("run/log?run=child")["text"])


def test_a_run_outlives_the_server_and_is_found_again(tmp_path):
    """kill -9 of the server and of all its session; then Ctrl-C of the next one."""
    with Process(tmp_path, "--port", 0) as first:
        assert first.ask("session")["logged_in"]
        start_child(first, tmp_path)
        os.killpg(first.process.pid, signal.SIGKILL)
        first.process.wait()
    with Process(tmp_path, "--port", 0) as second:
        assert second.token == first.token
        (found,) = second.ask("runs")["runs"]
        assert found["id"] == "child" and found["state"] == "starting"
        before = second.ask("run/log?run=child")["size"]
        wait_for(lambda: second.ask("run/log?run=child")["size"] > before)
        code, out, errors = second.end()
    assert code == 0 and "these runs go on: child" in errors and "Traceback" not in errors
    assert json.loads(out.splitlines()[-1])["runs"] == ["child"]
    with Process(tmp_path, "--port", 0) as third:
        assert third.ask("run/kill", {"run": "child", "confirmed": True})["gone"]
        wait_for(lambda: third.ask("run?run=child")["state"] == "killed")
        assert third.end(signal.SIGTERM)[0] == 0


def test_a_stream_does_not_hold_up_the_end(tmp_path):
    make_run(tmp_path / "root", lines=metrics([1]))
    with Process(tmp_path, "--port", 0, "--read-only") as server:
        host, port = server.place.split(":")
        with socket.create_connection((host, int(port)), timeout=60) as page:
            page.sendall(
                f"GET /api/run/events?run=run&after=0:0 HTTP/1.1\r\nHost: {server.place}\r\n"
                f"Authorization: Bearer {server.token}\r\n\r\n".encode()
            )
            received = b""
            while b"event: metrics" not in received:
                received += page.recv(65536)
            assert server.end()[0] == 0
    assert stat.S_IMODE((tmp_path / "root" / ".studio" / "token").stat().st_mode) == 0o600


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_a_training_is_stopped_resumed_and_finished(tmp_path):
    """The quickstart: 75 after the stop, then as if it had never stopped."""
    recipe = tmp_path / "recipes" / "small.py"
    write(
        recipe,
        "from configs import quickstart\n\n\ndef get_config():\n    c = quickstart.get_config()\n    c.steps = 60\n"
        "    c.evaluation.source = ''\n"
        "    c.stage.align.log_every = 1\n    return c\n",
    )
    with Process(tmp_path, "--port", 0) as server:
        assert server.ask("runs/start", {"recipe": str(recipe), "name": "run", "when": "now"}) == {"run": "run"}
        wait_for(lambda: (server.ask("run?run=run")["step"] or 0) >= 5, LONG, 0.5)
        during = server.ask("run?run=run")
        assert during["state"] in ("training", "evaluating") and during["steps"] == 60 and during["eta_seconds"] > 0
        server.ask("run/stop", {"run": "run"})
        wait_for(lambda: server.ask("run?run=run")["can"]["resume"], LONG, 0.5)
        paused = server.ask("run?run=run")
        assert paused["state"] == "paused" and paused["exit"]["code"] == 75 and paused["checkpoints"]
        cursor = server.ask("run/curves?run=run")["cursor"]
        assert server.ask("run/resume", {"run": "run"}) == {"run": "run"}
        wait_for(lambda: server.ask("run?run=run")["state"] == "training", LONG, 0.5)
        assert server.ask(f"run/metrics?run=run&after={cursor}")["reset"]  # the file was written again
        wait_for(lambda: server.ask("run?run=run")["state"] in ("done", "crashed", "mistake"), LONG, 0.5)
        assert server.ask("run?run=run")["state"] == "done"
        curves = server.ask("run/curves?run=run")
        loss = curves["series"]["loss"]
        assert loss["x"] == [*range(1, 121)] and [stage["last"] for stage in curves["stages"]] == [60, 60]
        assert server.end()[0] == 0
