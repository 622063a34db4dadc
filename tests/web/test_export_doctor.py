"""Export as a command of known fields; the doctor names what is missing, and what it is needed for."""

import json
import sys

import pytest

from jaxvlm.config_reading import to_dict
from jaxvlm.web import doctor_api
from tests import tiny
from tests.web.studio_client import make_client
from tests.web.waiting import wait_for


@pytest.fixture
def client(tmp_path, monkeypatch):
    made = make_client(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, policy in (("full", "full"), ("lora", "lora")):
        stage = tiny.stage_recipe()
        stage.parts.language = policy
        (tmp_path / "runs" / name).mkdir()
        saved = to_dict(tiny.config(tiny.recipe(only=stage)))
        (tmp_path / "runs" / name / "config.json").write_text(json.dumps(saved))
    return made


@pytest.fixture
def started(client, monkeypatch):
    seen = []
    monkeypatch.setattr(client.studio.tasks, "start", lambda kind, command, about: seen.append(command) or "id")
    return seen


def test_kinds(client):
    kinds = {run: {k["kind"]: k for k in client.get("export/kinds", run=run)} for run in ("full", "lora")}
    assert kinds["full"]["hf"]["available"] and not kinds["full"]["peft"]["available"] and kinds["full"]["peft"]["why"]
    assert kinds["lora"]["peft"]["available"] and not kinds["lora"]["gguf"]["available"]
    (client.studio.root / "full" / "config.json").write_text("{")
    assert client.refused("export/kinds", run="full") == (409, "run_broken")


def test_commands(client, started, tmp_path):
    found = client.post("export", {"run": "full", "kind": "hf", "to": "mine", "step": 7, "dtype": "bfloat16"})
    assert found == {"task": "id", "to": str(tmp_path / "exported" / "mine")}
    assert {"export", "--step=7", "--dtype=bfloat16", f"--out={tmp_path}/exported/mine"} <= set(started[0])
    assert "--merge" not in started[0]
    client.post("export", {"run": "lora", "kind": "hf", "to": str(client.studio.data_roots[0] / "new")})
    assert "--merge" in started[1]
    client.post("export", {"run": "lora", "kind": "peft", "to": "adapter", "base": "owner/name"})
    assert {"--adapter", "--base=owner/name"} <= set(started[2])


def test_what_is_refused(client, started, tmp_path):
    (tmp_path / "exported" / "there").mkdir(parents=True)
    for body, status in (
        ({"kind": "gguf"}, 409),
        ({"kind": "peft"}, 409),
        ({"kind": "zip"}, 422),
        ({"dtype": "int8"}, 422),
        ({"to": "there"}, 409),
        ({"to": "../x"}, 404),
        ({"to": "/tmp/x"}, 404),
        ({"to": ".x"}, 422),
        ({"to": ""}, 422),
        ({"run": "../full"}, 404),
    ):
        client.post("export", {"run": "full", "kind": "hf", "to": "mine"} | body, status)
    assert started == []


def test_the_doctor(client, monkeypatch):
    monkeypatch.setattr(doctor_api, "version_of", lambda package: None if package == "gguf" else "1.0")
    monkeypatch.setattr(doctor_api.shutil, "which", lambda tool: None if tool == "xpk" else f"/bin/{tool}")
    checks = {check["name"]: check for check in client.get("doctor")["checks"]}
    assert checks["jax"] == {"name": "jax", "value": "1.0", "ok": True, "why": ""}
    assert checks["gguf"]["ok"] is None and "[gguf]" in checks["gguf"]["why"]
    assert checks["xpk"]["why"] == "needed here for: GKE" and checks["git"]["ok"]
    assert checks["root"]["ok"] and checks["launch pages"]["ok"] and checks["disk"]["value"].endswith("free")


def test_devices_are_read_from_the_probe(client):
    found = {"backend": "cpu", "devices": [{"id": 0, "kind": "cpu", "memory_bytes": None}], "error": None}
    code = f"print('a warning'); print('''{json.dumps(found)}''')"
    task = client.studio.tasks.start("probe", [sys.executable, "-S", "-c", code], {})
    wait_for(lambda: client.studio.tasks.get(task)["state"] != "running")
    assert client.get("doctor/probe", task=task) == found
    task = client.studio.tasks.start("probe", [sys.executable, "-S", "-c", "raise SystemExit('no driver')"], {})
    wait_for(lambda: client.studio.tasks.get(task)["state"] != "running")
    reply = client.reply("doctor/probe", task=task)
    assert reply.status_code == 409 and "no driver" in reply.json()["error"]["message"]
