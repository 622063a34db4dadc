"""Run folders as `train` leaves them, without training; and a client of the app."""

import json
import os
import time

from starlette.testclient import TestClient

from jaxvlm.process_identity import identity
from jaxvlm.web.server import build_app
from jaxvlm.web.studio import Studio

TOKEN = "t" * 43
PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)
CONFIG = {
    "model": {"family": "llava", "language": {"embed_dim": 48}},
    "stages": ["align", "finetune"],
    "stage": {
        "align": {"epochs": 1.0, "parts": {"vision": "frozen", "projector": "full", "language": "frozen", "lora": {}}},
        "finetune": {"epochs": 2.0, "parts": {"vision": "frozen", "projector": "full", "language": "lora", "lora": {}}},
    },
}
GONE = {"host": os.uname().nodename, "pid": 2**22 + 5, "start_ticks": "1", "boot_id": "none"}


def own():
    """The identity of this process, which is alive."""
    return identity(os.getpid())


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def metrics(steps, stage="align", first=1, **values):
    """Lines of a metrics.jsonl."""
    lines = ({"stage": stage, "step": i, "loss": 10 / i, "tokens": 100.0, "step_seconds": 0.5, **values} for i in steps)
    return "".join(json.dumps(line) + "\n" for line in lines)


def make_run(root, name="run", *, config=CONFIG, lines="", **files):
    """A run's folder; `files` are values of its JSON files: process, exit, beat, ledger, studio, stop."""
    folder = root / name
    folder.mkdir(parents=True)
    if config is not None:
        write(folder / "config.json", config)
    if lines:
        write(folder / "metrics.jsonl", lines)
    for file, value in files.items():
        if isinstance(value, dict) and "age" in value:
            value = {**value, "time": time.time() - value["age"]}
        write(folder / ("heartbeats/0.json" if file == "beat" else f"{file}.json"), value)
    return folder


def beat(phase="step", age=0.0, pid=None, **values):
    """A heartbeat of this process, or of `pid`, `age` seconds before `make_run` writes it."""
    given = {"process": 0, "host": os.uname().nodename, "pid": pid or os.getpid(), "stage": "align", "steps": 50}
    return given | {"phase": phase, "step": 20, "phase_seconds": 1.5, "age": age} | values


def make_checkpoint(folder, stage, step, steps=50, content=b"12345"):
    path = folder / "checkpoints" / stage / str(step)
    (path / "params").mkdir(parents=True)
    (path / "params" / "data").write_bytes(content)
    write(path / "position" / "metadata", {"steps": steps})
    write(path / "files.json", {"params/data": len(content)})
    return path


def make_studio(tmp_path, **options):
    (tmp_path / "root").mkdir(exist_ok=True)
    (tmp_path / "recipes").mkdir(exist_ok=True)
    return Studio(tmp_path / "root", tmp_path / "recipes", **{"token": TOKEN, **options})


def client(studio, *, logged_in=True, **headers):
    """A client as a page is: with the headers that a change needs."""
    given = {"x-jaxvlm": "1", "content-type": "application/json"}
    if logged_in:
        given["authorization"] = f"Bearer {TOKEN}"
    app = build_app(studio)
    return TestClient(
        app,
        "http://127.0.0.1:7860",
        headers=given | headers,
        raise_server_exceptions=False,
        follow_redirects=False,
    )
