"""Settings, comparisons, logs, and what happens in a run as events."""

import asyncio
import json

import pytest

from jaxvlm.web import events
from jaxvlm.web.logs import read_log, search_log
from jaxvlm.web.settings import default_of, list_settings
from tests.web.folders import CONFIG, beat, client, make_run, make_studio, metrics, own, write


@pytest.fixture
def studio(tmp_path):
    return make_studio(tmp_path)


def other_config():
    changed = json.loads(json.dumps(CONFIG))
    changed["stage"]["finetune"]["epochs"] = 3.0
    changed["only_here"] = {"a": None}
    return changed


# --- settings


def test_settings(studio):
    make_run(studio.root, "one")
    make_run(studio.root, "two", config=other_config())
    found = client(studio).get("/api/run/settings?run=one&other=two").json()
    by_key = {entry["key"]: entry for entry in found["settings"]}
    assert found["other"] == "two"
    assert by_key["model.language.embed_dim"] | {"key": ""} == {
        **{"key": "", "value": 48, "default": 4096, "base_differs": True, "other": 48, "other_differs": False}
    }
    assert by_key["stage.finetune.epochs"]["other"] == 3.0 and by_key["stage.finetune.epochs"]["other_differs"]
    assert by_key["stage.finetune.epochs"]["default"] == default_of("stage.any.epochs") == 1.0
    assert by_key["only_here.a"] | {"key": ""} == {
        **{"key": "", "absent": True, "base_differs": False, "other": None, "other_differs": True}
    }
    alone = client(studio).get("/api/run/settings?run=one").json()
    assert alone["other"] is None and not any("other" in entry for entry in alone["settings"])


def test_a_recipe_that_changed_nothing_differs_in_nothing(tmp_path):
    import configs.base

    config = json.loads(configs.base.get_config().to_json())
    folder = make_run(tmp_path, config=config | {"stage": {"only": json.loads(configs.base.stage().to_json())}})
    found = list_settings(folder, None)
    assert len(found) > 80 and not [entry for entry in found if entry["base_differs"]]
    assert [entry["key"] for entry in found if "absent" in entry] == []


# --- comparison


def test_compare(studio):
    make_run(studio.root, "one", lines=metrics([1, 2]))
    folder = make_run(studio.root, "group/two", config=other_config(), lines=metrics([1]))
    write(folder / "evaluation.json", {"exact_match": 0.5, "count": 4, "by_group": {}})
    benchmark = {"scores": {"accuracy": 0.75, "f1": 0.5}, "interval": {"low": 0.7, "high": 0.8}, "answers": [{}, {}]}
    write(folder / "evaluations" / "pope.json", benchmark)
    write(folder / "evaluations" / "torn.json", "{")
    write(folder / "evaluation" / "other" / "evaluation.json", {"exact_match": 1.0, "count": 1})
    found = client(studio).get("/api/compare?run=one&run=group/two&run=one").json()
    assert [run["id"] for run in found["runs"]] == ["one", "group/two"]
    assert found["series"]["loss"]["one"]["x"] == [1, 2] and found["series"]["loss"]["group/two"]["x"] == [1]
    assert {row["key"]: row["values"] for row in found["settings"]} == {
        "stage.finetune.epochs": {"one": 2.0, "group/two": 3.0},
        "only_here.a": {"group/two": None},
    }
    assert found["evaluations"].keys() == {"test", "other", "pope"}
    assert found["evaluations"]["pope"]["group/two"] == {
        **{"metric": "accuracy", "score": 0.75, "low": 0.7, "high": 0.8, "count": 2}
    }
    assert found["evaluations"]["test"]["group/two"]["score"] == 0.5
    assert client(studio).get("/api/compare").status_code == 422
    many = "&".join(f"run=r{i}" for i in range(13))
    assert client(studio).get(f"/api/compare?{many}").status_code == 422


# --- logs


def test_log(studio):
    folder = make_run(studio.root)
    assert client(studio).get("/api/run/log?run=run").json() == {
        "text": "",
        "start": 0,
        "end": 0,
        "size": 0,
        "matches": [],
    }
    text = "first <b>\nsecond 二\nprogress 1\rprogress 2\r\nthird \x1b[31mERROR\x1b[0m\n"
    write(folder / "studio.log", text)
    size = len(text.encode())
    found = client(studio).get("/api/run/log?run=run&search=error").json()
    assert found["text"] == "first <b>\nsecond 二\nprogress 2\nthird ERROR\n"
    assert (found["start"], found["end"], found["size"]) == (0, size, size)
    assert found["matches"] == [{"offset": text.encode().index(b"third"), "line": "third ERROR"}]
    for query in ("bytes=0", "bytes=9999999999", "end=-1", "end=x"):
        assert client(studio).get(f"/api/run/log?run=run&{query}").status_code == 422


def test_pieces_of_a_log_are_whole_lines_and_join(tmp_path):
    path = tmp_path / "log"
    lines = [f"line {i} " + "é" * (i % 7) for i in range(200)]
    write(path, "\n".join(lines) + "\n")
    end, pieces = None, []
    while True:
        found = read_log(path, end, 300)
        pieces.insert(0, found["text"])
        end = found["start"]
        if end == 0:
            break
    assert "".join(pieces) == path.read_text() and len(pieces) > 5
    assert read_log(path, 10**9, 10)["end"] == path.stat().st_size


def test_a_log_of_one_endless_line(tmp_path):
    write(tmp_path / "log", "x" * 10_000)
    found = read_log(tmp_path / "log", None, 100)
    assert found["text"] == "x" * 100 and found["start"] == 9900


def test_search(tmp_path):
    write(tmp_path / "log", "\n".join(f"Line {i}.*" for i in range(1000)))
    assert len(search_log(tmp_path / "log", "line")) == 500 and search_log(tmp_path / "log", ".+") == []
    assert [match["line"] for match in search_log(tmp_path / "log", "LINE 77.*")] == ["Line 77.*"]
    assert search_log(tmp_path / "log", "") == [] and search_log(tmp_path / "none", "x") == []


# --- events


class Page:
    """What a page receives; `read` waits for the next event, with its comments left out."""

    def __init__(self, studio, folder, cursor, monkeypatch):
        monkeypatch.setattr(events, "POLL_SECONDS", 0.005)
        self.stream = events._events(studio, "run", folder, cursor)

    async def read(self, kind):
        while True:
            text = await asyncio.wait_for(anext(self.stream), 30)
            fields = dict(line.split(": ", 1) for line in text.strip().splitlines() if not line.startswith(":"))
            if fields.get("event") == kind:
                return fields.get("id"), json.loads(fields["data"])


def test_events(studio, monkeypatch):
    folder = make_run(studio.root, process=own(), beat=beat(), lines=metrics([1]))
    cursor = client(studio).get("/api/run/curves?run=run").json()["cursor"]

    async def watch():
        page = Page(studio, folder, cursor, monkeypatch)
        _, state = await page.read("state")
        assert state["state"] == "training"
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(metrics([2, 3], loss=float("nan"))[:-4])
        seen, news = await page.read("metrics")
        assert [line["step"] for line in news["lines"]] == [2] and news["lines"][0]["loss"] is None
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(metrics([2, 3], loss=float("nan"))[-4:] + metrics([4]))
        write(folder / "exit.json", {"code": 75})
        _, state = await page.read("state")
        assert state["state"] == "paused"
        # The page slept, and its browser connects again with the last id that it had.
        _, news = await Page(studio, folder, seen, monkeypatch).read("metrics")
        assert [line["step"] for line in news["lines"]] == [3, 4] and not news["reset"]
        (folder / "metrics.jsonl").unlink()
        write(folder / "metrics.jsonl", metrics([1]))
        _, news = await Page(studio, folder, "1:" + seen.split(":")[1], monkeypatch).read("metrics")
        assert news == {"lines": [], "reset": True}
        studio.closing = True
        assert [text async for text in page.stream if "event: state" in text] == []

    asyncio.run(watch())


def test_a_quiet_stream_says_that_it_lives(studio, monkeypatch):
    folder = make_run(studio.root)
    monkeypatch.setattr(events, "_QUIET_SECONDS", 0.0)

    async def watch():
        stream = Page(studio, folder, "0:0", monkeypatch).stream
        while not (await asyncio.wait_for(anext(stream), 30)).startswith(":"):
            pass

    asyncio.run(watch())


def test_the_reply_of_events(studio):
    make_run(studio.root, lines=metrics([1]))
    studio.closing = True  # the stream ends after its first line
    reply = client(studio).get("/api/run/events?run=run")
    assert reply.headers["content-type"].startswith("text/event-stream") and reply.text == "retry: 3000\n\n"
    assert client(studio).head("/api/run/events?run=run").text == ""
    assert reply.headers["cache-control"] == "no-cache" and reply.headers["x-accel-buffering"] == "no"


def test_a_line_feed_in_a_log_makes_no_event(studio, monkeypatch):
    """A value with line ends is one line of data."""
    folder = make_run(studio.root, exit={"code": 1, "message": "a\n\nevent: state\ndata: {}\r\u2028"})

    async def watch():
        _, state = await Page(studio, folder, "0:0", monkeypatch).read("state")
        assert state["error"]["line"] == "a\n\nevent: state\ndata: {}\r\u2028"

    asyncio.run(watch())
