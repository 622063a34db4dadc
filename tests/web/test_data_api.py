"""Data and plans: the browser stays below its roots; checks and plans are commands whose files are read."""

import json
import sys

import pytest
from PIL import Image

from jaxvlm.web import recipe_info as reading
from jaxvlm.web.folders import file_format
from jaxvlm.web.recipe_info import describe
from tests.web.studio_client import make_client
from tests.web.waiting import wait_for

BASE = "configs.quickstart"


@pytest.fixture
def client(tmp_path, monkeypatch):
    monkeypatch.setattr(
        reading, "_read", lambda base: reading.RecipeInfo(base, **json.loads(json.dumps(describe(base))))
    )
    return make_client(tmp_path)


def ended(client, code, kind="data_check"):
    """A task that has run this code in its folder, and ended."""
    task = client.studio.tasks.start(kind, lambda folder: [sys.executable, "-S", "-c", code, str(folder)], {})
    wait_for(lambda: client.studio.tasks.get(task)["state"] != "running")
    return task


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.json", '[{"id": 1, "conversations": []}, ', "conversations"),
        ("a.jsonl", '{"messages": [], "images": []}\n{', "messages"),
        ("a.json", '\ufeff [ {"instruction": "x", "output": "y"}]', "alpaca"),
        ("a.jsonl", '{"chosen": "a", "rejected": "b", "messages": []}', "pairs"),
        ("a.jsonl", '{"text": "long"}', "document"),
        ("a.json", "[" * 100_000, None),
        ("a.json", "[1, 2]", None),
        ("a.json", "", None),
        ("dataset_info.json", "{}", "dataset_info"),
        ("a.PNG", "", "image"),
        ("a.parquet", "", "table"),
        ("a.svg", "<svg/>", None),
    ],
)
def test_formats(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert file_format(tmp_path / name) == expected


def test_the_browser(client, tmp_path):
    data = client.studio.data_roots[0]
    (data / "大 <b>").mkdir()
    (data / "prepared").mkdir()
    (data / "prepared" / "card.json").write_text("{}")
    (data / "train.jsonl").write_text('{"messages": []}\n')
    (data / ".hidden").write_text("")
    roots = client.get("browse")
    assert str(data) in [folder["path"] for folder in roots["folders"]] and roots["parent"] is None
    found = client.get("browse", path=str(data))
    assert [(folder["name"], folder["format"]) for folder in found["folders"]] == [
        ("prepared", "prepared"),
        ("大 <b>", None),
    ]
    assert [(file["name"], file["bytes"], file["format"]) for file in found["files"]] == [
        ("train.jsonl", 17, "messages")
    ]
    assert found["parent"] is None and client.get("browse", path=str(data / "prepared"))["parent"] == str(data)
    for path in (str(tmp_path), "/", "/etc", f"{data}/..", f"{data}/no"):
        assert client.refused("browse", path=path)[0] == 404


def test_a_check_is_a_command(client, monkeypatch):
    seen = {}

    def start(kind, command, about, environment=None):
        folder = client.studio.root
        seen.update(kind=kind, command=command(folder), about=about, recipe=(folder / "recipe.py").read_text())
        return "id"

    monkeypatch.setattr(client.studio.tasks, "start", start)
    body = {"base": BASE, "values": {"stage.align.data.tokens": 128}, "stage": "align"}
    assert client.post("data/check", body) == {"task": "id"}
    assert seen["kind"] == "data_check" and "c.stage.align.data.tokens = 128" in seen["recipe"]
    assert seen["command"][2:4] == ["jaxvlm.inspect_data", "check"] and "--stage=align" in seen["command"]
    client.post("plan", body | {"machine": "2xv5e-16", "price": 1.5, "records": 1000})
    assert {"--topology=2xv5e-16", "--price-per-chip-hour=1.5", "--records=1000", "--json"} <= set(seen["command"])
    client.post("plan", body | {"machine": "here"})
    assert "--topology=here" in seen["command"]
    out = client.studio.data_roots[0] / "prepared"
    client.post("data/prepare", body | {"to": str(out), "jpeg": 95})
    assert seen["command"][seen["command"].index("--out") + 1] == str(out) and "--jpeg=95" in seen["command"]


def test_what_is_refused(client):
    body = {"base": BASE, "values": {}, "machine": "here", "to": str(client.studio.data_roots[0])}
    assert client.post("plan", body | {"machine": "h100-8"}, 422)["code"] == "no_slice"
    assert client.post("plan", body | {"stage": "no"}, 422)["code"] == "bad_field"
    assert client.post("plan", body | {"values": {"seed": "x"}}, 422)["facts"]["problems"][0]["key"] == "seed"
    assert client.post("data/prepare", body, 404)["code"] == "no_data"
    (client.studio.data_roots[0] / "there").mkdir()
    taken = body | {"to": str(client.studio.data_roots[0] / "there")}
    assert client.post("data/prepare", taken, 409)["code"] == "folder_exists"
    assert client.studio.tasks.list() == []


WRITES = """
import json, os, sys
os.chdir(sys.argv[1])
json.dump({"loses": True, "records": 3}, open("report.json", "w"))
tokens = [{"id": 1, "text": "<b>", "control": False, "trained": True}, {"picture": "0-0.png", "count": 9}]
json.dump([{"id": "a", "turns": [], "images": ["x.png"], "tokens": tokens}], open("rows.json", "w"))
open("rows.html", "w").write("<script>alert(1)</script>")
for n in range(300):
    line = {"record": n, "origin": f"a.json[{n}]", "reason": "roles", "problem": "<img src=x>"}
    open("problems.jsonl", "a").write(json.dumps(line) + chr(10))
os.mkdir("pictures")
sys.exit(2)
"""


def test_the_report_of_a_check(client):
    task = ended(client, WRITES)
    Image.new("RGB", (4, 4)).save(client.studio.tasks.folder(task) / "pictures" / "0-0.png")
    found = client.get("data/report", task=task)
    assert found["counts"] == {"loses": True, "records": 3} and found["state"] == "failed"
    assert found["samples"][0]["tokens"][1] == {"picture": "0-0.png", "count": 9}
    assert len(found["problems"]) == 200
    assert found["problems"][1] == {"line": 2, "origin": "a.json[1]", "reason": "roles", "message": "<img src=x>"}
    reply = client.reply("data/picture", task=task, name="0-0.png")
    assert reply.status_code == 200 and reply.headers["content-type"] == "image/png"
    for name in ("../task.json", "1-0.png", "0-0.png/..", "..%2ftask.json"):
        assert client.refused("data/picture", task=task, name=name) == (404, "no_image")
    page = client.reply("data/page", task=task)
    policy = page.headers["content-security-policy"]
    assert "script-src" not in policy and policy.startswith("default-src 'none'") and "sandbox" in policy
    assert client.refused("data/lengths", task=task) == (404, "no_image")


def test_a_check_that_failed(client):
    task = ended(client, "import sys; print('error: no file data/x.json; name one'); print('more'); sys.exit(2)")
    reply = client.reply("data/report", task=task)
    assert reply.status_code == 409 and reply.json()["error"]["message"] == "error: no file data/x.json; name one"
    assert client.refused("plan/result", task=task) == (409, "task_failed")


PLAN = {
    "fits": False,
    "slice": {"name": "v5e-16", "chips": 16},
    "memory_bytes": {"needed": 2e10, "limit": 1e10},
    "what_would_help": ["fewer rows at once: ...", "more chips: ..."],
    "estimate": {"step_seconds": 1.5},
    "run": {"hours": 3.0, "steps": 100, "cost": 12.5},
}


def test_the_result_of_a_plan(client):
    bar = "compiling: 50%|###   | 1/2 [00:01<00:01]"
    code = f"import sys; print({bar!r}); print('needed 20 GiB'); print({json.dumps(PLAN)!r}); sys.exit(3)"
    found = client.get("plan/result", task=ended(client, code, "plan"))
    assert (found["fits"], found["hours"], found["cost"], found["step_seconds"]) == (False, 3.0, 12.5, 1.5)
    assert found["first_fix"].startswith("fewer rows") and len(found["fixes"]) == 2
    assert found["report_text"] == "needed 20 GiB"
