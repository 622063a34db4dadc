"""The HTTP server with a scheduler that has no model: what clients see, whatever they send."""

import asyncio
import concurrent.futures
import http.client
import json
import re
import socket
import time

import openai
import pytest

from jaxvlm.serving.access import Access
from jaxvlm.serving.protocol import Served
from tests.serving.fake import FakeScheduler, serving
from tests.serving.images import DATA_URL, HOSTILE, data_url

HELLO = [{"role": "user", "content": "one two three"}]


@pytest.fixture(scope="module")
def server():
    with serving() as made:
        yield made


def client_of(server, **settings):
    settings = {"api_key": "EMPTY", "max_retries": 0, "timeout": 30} | settings
    return openai.OpenAI(base_url=f"{server.url}/v1", **settings)


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)


def ask(server, body=None, *, path="/v1/chat/completions", method="POST", headers=(), raw=None):
    """Status, headers and body of a reply, without any client's help."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    content = json.dumps(body) if raw is None else raw
    connection.request(method, path, content, {"Content-Type": "application/json", **dict(headers)})
    reply = connection.getresponse()
    return reply.status, reply.headers, reply.read().decode()


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- the official client --------------------------------------------------------------------------------------------


def test_a_plain_answer(client):
    reply = client.chat.completions.create(model="jaxvlm", messages=HELLO)
    assert reply.object == "chat.completion" and reply.id.startswith("chatcmpl-") and reply.model == "jaxvlm"
    (choice,) = reply.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content, choice.message.refusal) == ("assistant", "one two three", None)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (7, 3, 10)
    assert reply.usage.prompt_tokens_details.cached_tokens == 3


def test_a_stream_with_usage(client):
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 2}
    chunks = list(client.chat.completions.create(model="jaxvlm", messages=HELLO, **options))
    assert len({(chunk.id, chunk.created, chunk.object) for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "one two"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None, None, None, "length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 2
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_images_anywhere(server, client):
    image = {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "low"}}
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "first"}, image, image]},
        {"role": "assistant", "content": "two of <image>"},
        {"role": "user", "content": [image, {"type": "text", "text": "say <image>"}]},
    ]
    reply = client.chat.completions.create(model="jaxvlm", messages=turns)
    assert reply.choices[0].finish_reason == "stop" and reply.usage.prompt_tokens == 10
    record = server.scheduler.seen[-1].record
    assert len(record.images) == 3 and all(content.startswith(b"\x89PNG") for content in record.images)


def test_choices_and_log_probabilities(client):
    reply = client.chat.completions.create(model="jaxvlm", messages=HELLO, n=3, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert {choice.message.content for choice in reply.choices} == {"one two three"}
    content = reply.choices[1].logprobs.content
    assert [token.token for token in content] == ["one", " two", " three"]
    assert content[1].logprob == -0.5 and bytes(content[1].bytes) == b" two"
    assert [(top.token, top.logprob) for top in content[0].top_logprobs] == [("one0", -1.0), ("one1", -2.0)]
    chunks = client.chat.completions.create(model="jaxvlm", messages=HELLO, n=2, logprobs=True, stream=True)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        (choice,) = chunk.choices
        for token in choice.logprobs.content if choice.logprobs else ():
            texts[choice.index] += token.token
    assert texts == {0: "one two three", 1: "one two three"}


def test_many_at_once(server):
    async def ask_all():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", timeout=60) as client:
            calls = [
                client.chat.completions.create(model="jaxvlm", messages=[{"role": "user", "content": f"number {i}"}])
                for i in range(50)
            ]
            return await asyncio.gather(*calls)

    assert [reply.choices[0].message.content for reply in asyncio.run(ask_all())] == [f"number {i}" for i in range(50)]
    assert server.open == 0


def test_models(client, server):
    assert [model.id for model in client.models.list()] == ["jaxvlm"]
    model = client.models.retrieve("jaxvlm")
    assert model.object == "model" and model.max_model_len == 1000
    assert model.default_sampling == {"temperature": 0.0, "top_p": 1.0, "top_k": 0}
    with pytest.raises(openai.NotFoundError, match="'other' is not served; this server has 'jaxvlm'"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("kind", "fields", "code", "param"),
    [
        (openai.BadRequestError, {"temperature": 3}, "invalid_value", "temperature"),
        (openai.BadRequestError, {"tools": [{"type": "function"}]}, "unsupported_parameter", "tools"),
        (openai.BadRequestError, {"messages": [{"role": "user", "content": "long"}]}, "context_length_exceeded", None),
        (openai.NotFoundError, {"model": "gpt-4"}, "model_not_found", "model"),
        (openai.InternalServerError, {"messages": [{"role": "user", "content": "fail"}]}, "server_error", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_by_class(client, kind, fields, code, param, stream):
    """A stream that fails before its first event has the status of the failure, too."""
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "jaxvlm", "messages": HELLO, "stream": stream} | fields)
    assert caught.value.code == code and (param is None or caught.value.param == param)
    assert "fire" not in str(caught.value)  # what a failure says of the machine stays in the log


def test_an_answer_is_no_longer_than_there_is_room(client):
    """Clients ask for 2,048 tokens whatever the model has."""
    assert client.chat.completions.create(model="jaxvlm", messages=HELLO, max_tokens=5000).choices[0].message.content


# --- the bytes ------------------------------------------------------------------------------------------------------

TRANSCRIPT = """\
data: {"id":"ID","created":0,"model":"jaxvlm","object":"chat.completion.chunk","system_fingerprint":null,"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}

data: {"id":"ID","created":0,"model":"jaxvlm","object":"chat.completion.chunk","system_fingerprint":null,"choices":[{"index":0,"delta":{"content":"größer"},"logprobs":null,"finish_reason":null}],"usage":null}

data: {"id":"ID","created":0,"model":"jaxvlm","object":"chat.completion.chunk","system_fingerprint":null,"choices":[{"index":0,"delta":{"content":" 🙂"},"logprobs":null,"finish_reason":null}],"usage":null}

data: {"id":"ID","created":0,"model":"jaxvlm","object":"chat.completion.chunk","system_fingerprint":null,"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}

data: {"id":"ID","created":0,"model":"jaxvlm","object":"chat.completion.chunk","system_fingerprint":null,"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":3}}}

data: [DONE]

"""  # noqa: E501


def test_the_bytes_of_a_stream(server):
    body = {"messages": [{"role": "user", "content": "größer 🙂"}], "stream": True}
    status, headers, text = ask(server, body | {"stream_options": {"include_usage": True}})
    assert status == 200 and headers["content-type"].startswith("text/event-stream") and not headers["content-length"]
    text = re.sub(r'"id":"chatcmpl-[0-9a-f]+","created":\d+', '"id":"ID","created":0', text)
    assert text == TRANSCRIPT
    without = re.sub(r"data: [^\n]*\"choices\":\[\][^\n]*\n\n", "", TRANSCRIPT).replace(',"usage":null', "")
    assert re.sub(r'"id":"chatcmpl-[0-9a-f]+","created":\d+', '"id":"ID","created":0', ask(server, body)[2]) == without


def error_of(reply):
    status, headers, text = reply
    assert headers["content-type"] == "application/json"
    error = json.loads(text)["error"]
    assert error.keys() == {"message", "type", "param", "code"} and error["message"] and "detail" not in text
    return status, error


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe\xfd", "invalid_json"),
        (b'{"n": NaN}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"n": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b"[]", "invalid_value"),
        (b"null", "invalid_value"),
        (b"{}", "invalid_value"),
    ],
)
def test_bodies_that_are_no_json(server, raw, code):
    status, error = error_of(ask(server, raw=raw))
    assert status == 400 and error["code"] == code and error["type"] == "invalid_request_error"


def test_unknown_paths_and_methods(server):
    status, error = error_of(ask(server, path="/v1/completions"))
    assert status == 404 and error["code"] == "unknown_url" and "/v1/chat/completions" in error["message"]
    status, headers, text = ask(server, path="/v1/chat/completions", method="GET", raw=b"")
    assert status == 405 and headers["allow"] == "POST" and json.loads(text)["error"]["code"] == "method_not_allowed"
    for path in ("/docs", "/redoc", "/openapi.json", "/v1/models/", "//health"):
        assert error_of(ask(server, path=path, method="GET", raw=b""))[0] == 404


def test_broken_images_are_told_with_their_place(server):
    for stream in (False, True):
        for name, (content, _) in HOSTILE.items():
            parts = [
                {"type": "image_url", "image_url": DATA_URL},
                {"type": "image_url", "image_url": data_url(content)},
            ]
            reply = ask(server, {"messages": [{"role": "user", "content": parts}], "stream": stream})
            if HOSTILE[name][1] is None:
                assert reply[0] == 200, name
                continue
            status, error = error_of(reply)
            assert status == 400 and error["code"] == "invalid_image", name
            assert error["param"] == "messages[0].content[1].image_url" and error["param"] in error["message"], name


# --- limits ---------------------------------------------------------------------------------------------------------


def test_a_body_over_the_limit():
    with serving(max_body=1000) as server:
        long = {"messages": [{"role": "user", "content": "x" * 1000}]}
        status, error = error_of(ask(server, long))
        assert status == 413 and error["code"] == "request_too_large" and "1,000 bytes" in error["message"]
        chunks = (b"x" * 100 for _ in range(20))  # without a Content-Length
        assert error_of(ask(server, raw=chunks))[0] == 413
        assert ask(server, {"messages": HELLO})[0] == 200


def waiting(**fields):
    return {"messages": [{"role": "user", "content": "please wait"}]} | fields


def test_a_full_queue():
    scheduler = FakeScheduler(slots=2, queue=1)
    with serving(scheduler, max_calls=3) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        replies = [pool.submit(ask, server, waiting()) for _ in range(2)]
        wait_until(lambda: scheduler.stats().slots_used == 2)
        status, headers, text = ask(server, waiting(n=2))  # one of the two has room
        assert status == 429 and int(headers["retry-after"]) > 0 and json.loads(text)["error"]["code"] == "queue_full"
        wait_until(lambda: scheduler.stats().slots_used == 2)
        assert scheduler.stats().finished == {"cancelled": 1}
        replies.append(pool.submit(ask, server, waiting()))
        wait_until(lambda: scheduler.stats().slots_used == 3)
        with pytest.raises(openai.RateLimitError):
            client_of(server).chat.completions.create(model="jaxvlm", **waiting())
        scheduler.go.set()
        assert [future.result()[0] for future in replies] == [200] * 3


def leave(server, body, *, after):
    """Sends a request, waits for `after()`, and closes the connection."""
    host, port = server.url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + content)
        after(connection)


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 3}, {"n": 2, "stream": True}])
def test_a_client_that_leaves_frees_its_slots(fields):
    scheduler = FakeScheduler()
    with serving(scheduler) as server:
        count = fields.get("n", 1)
        leave(server, waiting(**fields), after=lambda _: wait_until(lambda: scheduler.stats().slots_used == count))
        wait_until(lambda: scheduler.stats().finished == {"cancelled": count} and server.open == 0)
        assert (
            'jaxvlm_http_requests_total{path="/v1/chat/completions",status="499"} 1.0'
            in ask(server, path="/metrics", method="GET")[2]
        )
        assert ask(server, {"messages": HELLO})[0] == 200


def test_a_client_that_leaves_in_the_middle():
    """Of a stream, of which it has read an event; and of its own body."""
    scheduler = FakeScheduler()
    with serving(scheduler) as server:
        body = waiting(stream=True, n=2)
        body["messages"][0]["content"] = "mixed wait"

        def read(connection):
            wait_until(lambda: scheduler.stats().slots_used == 2)
            scheduler.seen.clear()

        leave(server, body, after=read)
        wait_until(lambda: server.open == 0)
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
            wait_until(lambda: server.open == 1)
        wait_until(lambda: server.open == 0)


def test_a_server_that_stops_finishes_what_it_has():
    scheduler = FakeScheduler()
    with concurrent.futures.ThreadPoolExecutor() as pool, serving(scheduler, grace=30) as server:
        replies = [pool.submit(ask, server, waiting(stream=stream)) for stream in (False, True)]
        wait_until(lambda: scheduler.stats().slots_used == 2)
        server.server.stop()
        wait_until(lambda: server.state == "stopping")
        status, headers, text = ask(server, {"messages": HELLO})
        assert status == 503 and headers["retry-after"] and "shutting down" in text
        assert ask(server, path="/health", method="GET")[0] == 503
        scheduler.go.set()
        replies = [future.result() for future in replies]
    assert [reply[0] for reply in replies] == [200, 200] and replies[1][2].endswith("data: [DONE]\n\n")


def test_requests_before_it_is_ready():
    scheduler = FakeScheduler()
    with serving(scheduler) as server:
        server.state = "starting"
        for path, method in (("/health", "GET"), ("/v1/chat/completions", "POST")):
            assert ask(server, {"messages": HELLO}, path=path, method=method)[0] == 503
        with pytest.raises(openai.InternalServerError, match="being compiled"):
            client_of(server).chat.completions.create(model="jaxvlm", messages=HELLO)
        server.state = "ready"


def test_a_start_that_fails_is_the_errors_of_the_command():
    class Failing(FakeScheduler):
        def start(self, progress=False):
            raise MemoryError("too large")

    with serving(Failing(), ready=False) as server, pytest.raises(MemoryError, match="too large"):
        server.server.run()


# --- access ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:1", "127.1.2.3", "[::1]:80", "LOCALHOST"])
def test_names_of_this_machine(server, host):
    assert ask(server, path="/v1/models", method="GET", headers={"Host": host})[0] == 200


@pytest.mark.parametrize("host", ["", "evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io", "[::]"])
def test_other_names(server, host):
    status, error = error_of(ask(server, {"messages": HELLO}, headers={"Host": host}))
    assert status == 403 and error["code"] == "host_not_allowed"


def test_pages_of_browsers(server):
    origin = {"Origin": "https://evil.example"}
    status, error = error_of(ask(server, {"messages": HELLO}, headers=origin | {"Content-Type": "text/plain"}))
    assert status == 403 and error["code"] == "origin_not_allowed" and "--allow-origin" in error["message"]
    ours = {"Origin": "http://localhost:3000"}
    with serving(access=Access(key=b"k", origins=frozenset({ours["Origin"]}))) as server:
        asks = ours | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        status, headers, _ = ask(server, path="/v1/chat/completions", method="OPTIONS", headers=asks, raw=b"")
        assert status == 200 and headers["access-control-allow-origin"] == ours["Origin"]
        status, headers, _ = ask(server, {"messages": HELLO}, headers=ours)
        assert status == 401 and headers["access-control-allow-origin"] == ours["Origin"]  # the page may read why
        reply = ask(server, {"messages": HELLO}, headers=origin | {"Authorization": "Bearer k"})
        assert reply[0] == 403 and reply[1]["access-control-allow-origin"] is None


def test_keys():
    with serving(access=Access(key=b"secret", loopback=False)) as server:
        assert client_of(server, api_key="secret").models.list().data[0].id == "jaxvlm"
        for key in ("", "secre", "secret2", "SECRET", "s\u00e9cret"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert error_of(ask(server, {"messages": HELLO}, headers=headers))[0] == 401
        with pytest.raises(openai.AuthenticationError) as caught:
            client_of(server, api_key="wrong").chat.completions.create(model="jaxvlm", messages=HELLO)
        assert caught.value.code == "invalid_api_key"
        assert ask(server, path="/metrics", method="GET")[0] == 401
        assert ask(server, path="/health", method="GET", headers={"Host": "load.balancer"})[0] == 200


# --- what is written ------------------------------------------------------------------------------------------------


def test_every_request_is_counted_and_nothing_of_it_is_logged(capfd):
    key = b"a-secret-key"
    with serving(access=Access(key=key)) as server:
        secret = {"Authorization": f"Bearer {key.decode()}"}
        body = {"messages": [{"role": "user", "content": "a private text"}], "strange_field": "x", "odd": 1}
        for _ in range(2):
            assert ask(server, body, headers=secret)[0] == 200
        parts = [{"type": "image_url", "image_url": DATA_URL}]
        assert ask(server, {"messages": [{"role": "user", "content": parts}], "n": 99}, headers=secret)[0] == 400
        ask(server, {"messages": HELLO})
        ask(server, path="/v1/a%0Aprivate%20path?private=query", method="GET", headers=secret)
        text = ask(server, path="/metrics", method="GET", headers=secret)[2]
    written = capfd.readouterr()
    for private in ("private text", "iVBOR", key.decode(), "private=query", "\na private"):
        assert private not in written.out + written.err
    assert written.err.count("unknown field 'strange_field'") == 1 and written.err.count("unknown field 'odd'") == 1
    assert re.search(r"^POST /v1/chat/completions 200 7\+3 tokens \d+\.\d\d s$", written.err, re.MULTILINE)
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
    counted = {name: float(value) for name, value in lines.items() if name.startswith("jaxvlm_http_requests_total")}
    path = 'jaxvlm_http_requests_total{path="/v1/chat/completions",status='
    assert counted == {
        f'{path}"200"}}': 2,
        f'{path}"400"}}': 1,
        f'{path}"401"}}': 1,
        'jaxvlm_http_requests_total{path="other",status="404"}': 1,
    }
    assert lines['jaxvlm_answers_total{reason="stop"}'] == "2.0" and lines["jaxvlm_slots"] == "4.0"
    assert lines['jaxvlm_time_to_first_token_seconds_bucket{le="+Inf"}'] == "0.0"
    assert lines["jaxvlm_http_in_flight"] == "1.0"


def test_a_model_of_another_name():
    with serving(served=Served("me/mine", takes_images=False, takes_system=False)) as server:
        client = client_of(server)
        assert client.models.retrieve("me/mine").id == "me/mine"
        assert client.chat.completions.create(model="me/mine", messages=HELLO).model == "me/mine"
        system = [{"role": "system", "content": "Be kind."}, *HELLO]
        with pytest.raises(openai.BadRequestError, match="writes no system message"):
            client.chat.completions.create(model="me/mine", messages=system)
        image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": DATA_URL}}]}]
        with pytest.raises(openai.BadRequestError, match="takes no images"):
            client.chat.completions.create(model="me/mine", messages=image)


def test_a_prompt_to_look_at(server):
    body = {"messages": HELLO, "stream": True, "temperature": 0.5}
    status, _, content = ask(server, body, path="/v1/chat/prompt")
    tokens = [{"id": 5, "text": "one two three", "control": False}]
    assert status == 200 and json.loads(content) == {"tokens": tokens, "pixels": [], "length": 1, "limit": 1000}
    parts = [{"type": "image_url", "image_url": {"url": DATA_URL}}, {"type": "text", "text": "long"}]
    status, _, content = ask(server, {"messages": [{"role": "user", "content": parts}]}, path="/v1/chat/prompt")
    assert status == 400 and json.loads(content)["error"]["param"] == "messages[0].content[0].image_url"
    assert ask(server, {"messages": []}, path="/v1/chat/prompt")[0] == 400
