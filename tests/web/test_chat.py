"""Chats: a serving process for each, its answers passed on as they come, and nothing of it in the studio's memory."""

import json
import sys
from pathlib import Path

import anyio
import pytest

from jaxvlm.web import chat_api
from jaxvlm.web.chat_api import address_of
from jaxvlm.web.studio import Studio
from tests.web.studio_client import TOKEN, Client, make_client
from tests.web.waiting import wait_for

FAKE = str(Path(__file__).with_name("fake_serve.py"))
BODY = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def client(tmp_path):
    made = make_client(tmp_path)
    (tmp_path / "runs" / "a").mkdir()
    (tmp_path / "runs" / "a" / "config.json").write_text("{}")
    (tmp_path / "data" / "model").mkdir()
    yield made
    for task in made.studio.tasks.list():
        if task["state"] == "running":
            made.studio.tasks.cancel(task["id"])


@pytest.fixture
def chat(client, monkeypatch):
    """The ID of a chat whose process is the stand-in."""
    start = client.studio.tasks.start

    def with_fake(kind, command, about, environment=None):
        def fake(folder):
            assert command(folder)[1:3] == ["-m", "jaxvlm.serve"]  # also writes the key
            return [sys.executable, "-S", FAKE, str(folder)]

        return start(kind, fake, about, environment)

    monkeypatch.setattr(client.studio.tasks, "start", with_fake)
    found = client.post("chat/start", {"run": "a", "stage": "finetune", "step": 7})["chat"]
    wait_for(lambda: client.get("chat", id=found)["state"] == "compiling")
    return found


def make_ready(client, chat):
    (client.studio.tasks.folder(chat) / "compiled").touch()
    wait_for(lambda: client.get("chat", id=chat)["state"] == "ready")


def test_states(client, chat):
    state = client.get("chat", id=chat)
    assert state["tokens"] == 336 and state["model"] is None and state["about"]["run"] == "a"
    assert client.post("chat/complete", {"id": chat, "body": BODY}, 409)["facts"]["state"] == "compiling"
    make_ready(client, chat)
    assert client.get("chat", id=chat)["model"] == "jaxvlm"
    assert [found["id"] for found in client.get("chats")["chats"]] == [chat]
    client.post("chat/stop", {"id": chat})
    wait_for(lambda: client.get("chat", id=chat)["state"] == "stopped")
    assert client.get("chats")["chats"] == []
    assert client.post("chat/show", {"id": chat, "body": BODY}, 409)["facts"]["state"] == "stopped"


def test_answers_are_passed_on(client, chat):
    make_ready(client, chat)
    reply = client._http.post("/api/chat/complete", json={"id": chat, "body": BODY | {"stream": True}})
    assert reply.status_code == 200 and reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text == "data: one\n\ndata: [DONE]\n\n" and reply.headers["x-accel-buffering"] == "no"
    assert client.post("chat/show", {"id": chat, "body": BODY})["body"] == BODY
    reply = client._http.post("/api/chat/complete", json={"id": chat, "body": {}})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "messages"


def test_pieces_come_before_the_end_and_leaving_ends_the_answer(client, chat):
    make_ready(client, chat)
    folder = client.studio.tasks.folder(chat)

    async def read_one():
        reply = await chat_api._passed_on(
            address_of(client.studio, chat), "/v1/chat/completions", BODY | {"wait": True}
        )
        pieces = reply.body_iterator
        assert (await anext(pieces)).startswith(b"data: one")
        await pieces.aclose()

    anyio.run(read_one)
    wait_for((folder / "left").exists)


def test_another_studio_finds_the_chat(client, chat, tmp_path):
    make_ready(client, chat)
    again = Client(Studio(tmp_path / "runs", tmp_path / "recipes", token=TOKEN))
    assert again.post("chat/show", {"id": chat, "body": BODY})["tokens"]


def test_the_key_is_for_this_user_alone(client, chat):
    folder = client.studio.tasks.folder(chat)
    assert (folder / "key").stat().st_mode & 0o077 == 0 and len((folder / "key").read_text().strip()) == 64
    key = (folder / "key").read_text().strip()
    assert key not in json.dumps(client.get("chat", id=chat)) + (folder / "task.json").read_text()


def test_a_process_that_is_gone(client, chat, monkeypatch):
    make_ready(client, chat)
    monkeypatch.setattr(chat_api, "address_of", lambda *_: chat_api.Address(1, "key"))
    assert client.post("chat/complete", {"id": chat, "body": BODY}, 502)["code"] == "chat_gone"


def test_what_is_refused(client):
    for body, status in (
        ({}, 422),
        ({"run": "a", "folder": "x"}, 422),
        ({"run": "../a"}, 404),
        ({"run": "no"}, 404),
        ({"folder": "/etc"}, 404),
        ({"folder": str(client.studio.data_roots[0] / "model"), "step": 1}, 422),
    ):
        client.post("chat/start", body, status)
    assert client.studio.tasks.list() == []
    task = client.studio.tasks.start("plan", [sys.executable, "-S", "-c", ""], {})
    assert client.refused("chat", id=task) == (404, "no_chat")
    assert client.refused("chat", id="chat-../x") == (404, "no_task")
