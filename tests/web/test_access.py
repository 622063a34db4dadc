"""Who may ask: each rule of the server, with what it refuses."""

import errno
import re

import pytest
from starlette.responses import Response

from jaxvlm.web import server
from jaxvlm.web.access import HEADERS, cookie_name
from jaxvlm.web.messages import Reply, get, post
from tests.web.folders import PNG, TOKEN, client, make_run, make_studio, write

OTHER = "http://evil.test"


class Extra:
    """A module of routes."""

    @staticmethod
    def routes(studio):
        def fail(_):
            raise RuntimeError("inside")

        def full(request):
            raise OSError(int(request.query_params["errno"]), "inside", "/a/file")

        return [
            get("/api/fail", fail),
            get("/api/full", full),
            get("/api/own", lambda _: Response("", headers={"content-security-policy": "sandbox"})),
            get("/api/nan", lambda _: Reply({"a": float("nan"), "b": [1.5, float("inf")], "c": "一\udc80"})),
            post("/api/chat/show", lambda request: Reply(len(request.scope["jaxvlm.body"]))),
            post("/api/echo", lambda request: Reply(len(request.scope["jaxvlm.body"]))),
        ]


@pytest.fixture
def studio(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "API", (Extra, *server.API))  # first, as some of its paths are those of others
    pages = tmp_path / "pages"
    write(pages / "index.html", "<p>page</p>")
    write(pages / "main.js", "1")
    (pages / "link.js").symlink_to(tmp_path / "secret")
    write(tmp_path / "secret", "secret")
    monkeypatch.setattr(server, "PAGES", pages)
    made = make_studio(tmp_path)
    make_run(made.root)
    return made


def code(reply):
    return reply.status_code, reply.json()["error"]["code"]


# --- the name of the server


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:7860", "localhost:9999", "[::1]:7860", "LOCALHOST"])
def test_own_names(studio, host):
    assert client(studio, host=host).get("/api/runs").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.test", "evil.test:7860", "127.0.0.1.evil.test", "", "10.0.0.1", "localhost.evil.test"]
)
def test_other_names(studio, host):
    """DNS rebinding: a page under its own name, which leads to this server; also for pages, and with a token."""
    for path in ("/api/runs", "/api/session", "/", "/main.js"):
        assert code(client(studio, host=host).get(path)) == (421, "host_not_allowed")


def test_names_of_the_command_line(tmp_path):
    studio = make_studio(tmp_path, allowed_hosts=("lab7.example.org", "proxy.example.org:8443"))
    for host, status in {
        "lab7.example.org": 200,
        "Lab7.example.org:7860": 200,
        "proxy.example.org:8443": 200,
        "proxy.example.org:8444": 421,
        "proxy.example.org": 421,
    }.items():
        assert client(studio, host=host).get("/api/runs").status_code == status


# --- the token


def test_without_token_nothing_but_the_pages(studio):
    asked = client(studio, logged_in=False)
    for route in server.build_app(studio).routes:
        path = getattr(route, "path", "")
        if path.startswith("/api/") and path not in ("/api/session", "/api/login"):
            reply = asked.request("POST" if "POST" in route.methods else "GET", path, json={})
            assert code(reply) == (401, "not_logged_in"), path
    assert code(asked.get("/api/none")) == (401, "not_logged_in")
    assert asked.get("/").text == "<p>page</p>" and asked.get("/main.js").status_code == 200
    assert asked.get("/api/session").json().keys() == {"logged_in", "language", "version"}


@pytest.mark.parametrize("sent", ["", "Bearer", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer ", "Bearer é"])
def test_a_wrong_token(studio, sent):
    asked = client(studio, logged_in=False)
    assert asked.get("/api/runs", headers={"authorization": sent.encode("latin-1")}).status_code == 401


def test_login_gives_a_cookie_that_scripts_and_other_sites_do_not_get(studio):
    asked = client(studio, logged_in=False)
    assert code(asked.post("/api/login", json={"token": "wrong"})) == (401, "wrong_token")
    assert code(asked.post("/api/login", json={"token": ["t"]})) == (422, "bad_field")
    assert asked.get("/api/runs").status_code == 401
    reply = asked.post("/api/login", json={"token": TOKEN})
    assert reply.status_code == 200
    cookie = reply.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/;")) and "domain" not in cookie
    assert asked.get("/api/runs").status_code == 200
    assert asked.get("/api/session").json()["root"] == str(studio.root)


def test_cookies(studio):
    asked = client(studio, logged_in=False)
    name = cookie_name(TOKEN)
    for cookie, status in {
        f"a=b; {name}={TOKEN}": 200,
        f"{name}=x": 401,
        f"other={TOKEN}": 401,
        "a=\x7f;;=": 401,
    }.items():
        assert asked.get("/api/runs", headers={"cookie": cookie}).status_code == status


def test_an_empty_token_lets_nobody_in(tmp_path):
    asked = client(make_studio(tmp_path, token=""), logged_in=False)
    assert asked.get("/api/runs", headers={"authorization": "Bearer "}).status_code == 401


# --- changes


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"origin": "http://127.0.0.1:7860"}, None),
        ({"origin": "http://127.0.0.1:7860", "sec-fetch-site": "same-origin"}, None),
        ({"content-type": "application/json; charset=utf-8"}, None),
        ({"origin": OTHER}, "cross_origin"),
        ({"origin": "null"}, "cross_origin"),
        ({"origin": "http://127.0.0.1:3000"}, "cross_origin"),  # another program of this machine
        ({"origin": "http://localhost:7860"}, "cross_origin"),
        ({"origin": "file://127.0.0.1:7860"}, "cross_origin"),
        ({"sec-fetch-site": "cross-site"}, "cross_origin"),
        ({"sec-fetch-site": "same-site"}, "cross_origin"),
        ({"sec-fetch-site": "none"}, "cross_origin"),
        ({"content-type": "application/x-www-form-urlencoded"}, "not_json"),
        ({"content-type": "multipart/form-data; boundary=x"}, "not_json"),
        ({"content-type": "text/plain"}, "not_json"),
        ({"content-type": ""}, "not_json"),
    ],
)
def test_changes(studio, headers, expected):
    reply = client(studio).post("/api/echo", content="{}", headers=headers)
    assert (reply.status_code, reply.json()) == (200, 2) if expected is None else code(reply) == (403, expected)


def test_a_change_needs_our_header(studio):
    asked = client(studio)
    del asked.headers["x-jaxvlm"]
    assert code(asked.post("/api/echo", content="{}")) == (403, "no_client_header")


def test_a_login_is_a_change_too(studio):
    reply = client(studio, logged_in=False).post("/api/login", json={"token": TOKEN}, headers={"origin": OTHER})
    assert code(reply) == (403, "cross_origin")


def test_an_origin_of_a_proxy(tmp_path):
    """A proxy that speaks TLS and names 127.0.0.1 in the Host header."""
    studio = make_studio(tmp_path, allowed_hosts=("studio.example.org",))
    post = {"json": {"run": "none"}}
    own = client(studio).post("/api/run/stop", **post, headers={"origin": "https://studio.example.org"})
    assert code(own) == (404, "no_run")
    assert code(client(studio).post("/api/run/stop", **post, headers={"origin": OTHER})) == (403, "cross_origin")


def test_other_pages_cannot_read(studio):
    for site, status in {"same-origin": 200, "none": 200, "same-site": 403, "cross-site": 403}.items():
        assert client(studio).get("/api/runs", headers={"sec-fetch-site": site}).status_code == status
    reply = client(studio).options("/api/echo", headers={"origin": OTHER, "access-control-request-method": "POST"})
    assert reply.status_code == 403
    for found in (reply, client(studio).get("/api/runs", headers={"origin": OTHER})):
        assert not [name for name in found.headers if name.startswith("access-control")]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_methods(studio, method):
    assert code(client(studio).request(method, "/api/echo")) == (405, "method_not_allowed")


def test_read_only(tmp_path, monkeypatch):
    monkeypatch.setattr(server, "API", (Extra, *server.API))  # first, as some of its paths are those of others
    studio = make_studio(tmp_path, read_only=True)
    asked = client(studio)
    for route in server.build_app(studio).routes:
        if "POST" in getattr(route, "methods", ()) and route.path != "/api/login":
            assert code(asked.post(route.path, json={})) == (403, "read_only"), route.path
    assert asked.post("/api/login", json={"token": TOKEN}).status_code == 200
    assert asked.get("/api/session").json()["read_only"] is True


# --- headers


def test_every_reply_has_the_headers(studio):
    asked = client(studio)
    replies = [
        asked.get("/"),
        asked.get("/main.js"),
        asked.get("/none"),
        asked.get("/api/runs"),
        asked.get("/api/none"),
        asked.get("/api/fail"),
        asked.get("/api/run?run=no"),
        asked.post("/api/echo", content="{}"),
        asked.get("/api/runs", headers={"authorization": ""}),
        asked.get("/api/runs", headers={"host": "evil.test"}),
        asked.get("/api/run/curves.csv?run=run"),
    ]
    assert [reply.status_code for reply in replies] == [200, 200, 404, 200, 404, 500, 404, 200, 401, 421, 200]
    for reply in replies:
        assert {name: reply.headers.get(name) for name in HEADERS} == HEADERS
    policy = HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    assert "frame-ancestors 'none'" in policy
    assert asked.get("/api/own").headers["content-security-policy"] == "sandbox"


def test_a_failure_of_ours_says_nothing_of_it(studio, capsys):
    reply = client(studio).get("/api/fail")
    assert code(reply) == (500, "server_error") and "inside" not in reply.text
    assert "RuntimeError: inside" in capsys.readouterr().err


def test_a_full_disk(studio):
    reply = client(studio).get(f"/api/full?errno={errno.ENOSPC}")
    assert code(reply) == (507, "disk") and "free some space" in reply.json()["error"]["message"]
    assert code(client(studio).get(f"/api/full?errno={errno.EIO}")) == (500, "server_error")


def test_replies_are_valid_json(studio):
    reply = client(studio).get("/api/nan")
    assert reply.content == '{"a":null,"b":[1.5,null],"c":"一?"}'.encode()


# --- sizes


def test_bodies(studio):
    asked = client(studio)
    large = b" " * (2**20 + 1)
    assert asked.post("/api/echo", content=large[1:]).json() == 2**20
    assert code(asked.post("/api/echo", content=large)) == (413, "too_large")
    assert code(asked.post("/api/echo", content=(large for _ in range(1)))) == (413, "too_large")  # of unknown length
    assert asked.post("/api/chat/show", content=large).json() == 2**20 + 1
    declared = {"content-length": str(2**26 + 1)}
    assert code(asked.post("/api/chat/show", content=b"", headers=declared)) == (413, "too_large")


@pytest.mark.parametrize("body", ["", "{", "[]", "1", "nul", "[" * 100_000])
def test_bodies_that_are_no_object(studio, body):
    reply = client(studio).post("/api/run/stop", content=body)
    assert code(reply) == ((422, "bad_field") if body == "" else (400, "bad_json"))


# --- paths

HOSTILE = [
    *("..", "../secret", "/etc", "run/../run", "%2e%2e", "run/..", "link", "run\0", "~", ".studio", "x" * 5000, ""),
    "<script>alert(1)</script>",
]


@pytest.mark.parametrize("run", HOSTILE)
def test_hostile_names_of_runs(studio, tmp_path, run):
    make_run(tmp_path, "elsewhere")
    (studio.root / "link").symlink_to(tmp_path / "elsewhere")
    asked = client(studio)
    for route in server.build_app(studio).routes:
        path = getattr(route, "path", "")
        if path.startswith("/api/run/") or path in ("/api/run", "/api/compare"):
            if "GET" in route.methods:
                reply = asked.get(path, params={"run": run, "name": "loss.png", "after": "0:0"})
            else:
                reply = asked.post(path, json={"run": run})
            assert code(reply) == (404, "no_run"), path
    assert code(asked.get("/api/run/settings", params={"run": "run", "other": run or ".."})) == (404, "no_run")


@pytest.mark.parametrize(
    "path", ["/../secret", "/%2e%2e/secret", "/link.js", "/..%2fsecret", "//etc/passwd", "/a\\..\\b"]
)
def test_static_files_stay_below_the_pages(studio, path):
    assert client(studio).get(path).status_code == 404


def test_pictures_are_told_from_their_bytes(studio, tmp_path):
    folder = studio.root / "run"
    for name, content in {
        "loss.png": PNG,
        "script.png": b"<svg onload=alert(1)>",
        "real.svg": b"<svg/>",
        "photo.jpg": b"\xff\xd8\xff" + bytes(9),
    }.items():
        (folder / name).write_bytes(content)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "outside.png").write_bytes(PNG)

    def ask(name):
        return client(studio).get("/api/run/file", params={"run": "run", "name": name})

    reply = ask("loss.png")
    assert reply.status_code == 200 and reply.headers["content-type"] == "image/png" and reply.content == PNG
    assert ask("photo.jpg").headers["content-type"] == "image/jpeg"
    for name in ("script.png", "real.svg", "link.png", "../run/loss.png", "config.json", str(folder / "loss.png"), ""):
        assert code(ask(name)) == (404, "no_picture")


# --- below a path of a proxy


def test_a_prefix(tmp_path, monkeypatch):
    write(tmp_path / "pages" / "index.html", "page")
    monkeypatch.setattr(server, "PAGES", tmp_path / "pages")
    studio = make_studio(tmp_path, prefix="/lab/studio")
    asked = client(studio)
    assert asked.get("/lab/studio/").text == "page" and asked.get("/lab/studio/api/runs").status_code == 200
    reply = asked.get("/lab/studio")
    assert reply.status_code == 307 and reply.headers["location"] == "studio/"
    assert asked.get("/api/runs").status_code == 404 and asked.get("/lab/studiox").status_code == 404
    outside = client(studio, logged_in=False)
    assert outside.get("/lab/studio/api/runs").status_code == 401
    cookie = outside.post("/lab/studio/api/login", json={"token": TOKEN}).headers["set-cookie"]
    assert re.search(r"path=/lab/studio/;", cookie, re.IGNORECASE)
