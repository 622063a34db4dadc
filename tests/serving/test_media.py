"""URLs of images: which are read, which are refused, and what is never reached."""

import base64
import http.server
import socket
import threading
import time
import urllib.parse

import pytest

from jaxvlm.data.media.images import decode
from jaxvlm.serving import fetch
from jaxvlm.serving.media import MediaRules, read_image
from jaxvlm.serving.requests import RequestError
from tests.serving.images import DATA_URL, HOSTILE, PNG, data_url

RULES = MediaRules()
BASE64 = base64.b64encode(PNG).decode()


def read(url, rules=RULES):
    return read_image(url, rules, "messages[0].content[1].image_url")


def refused(url, rules=RULES):
    with pytest.raises(RequestError) as caught:
        read(url, rules)
    assert caught.value.param == "messages[0].content[1].image_url" and caught.value.param in str(caught.value)
    assert BASE64[:60] not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "url",
    [
        DATA_URL,
        data_url(PNG, "image/jpeg"),  # a wrong type
        data_url(PNG, ""),
        data_url(PNG, "text/html"),
        data_url(PNG, "IMAGE/PNG;charset=utf-8"),
        f"DATA:image/png;BASE64,{BASE64}",
        f"data:image/png; base64,{BASE64}",
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        f"data:image/png;base64,{BASE64}====",
        f"data:image/png;base64,{base64.urlsafe_b64encode(PNG).decode().rstrip('=')}",
        f"data:image/png;base64,{urllib.parse.quote(BASE64, safe='')}",
        "data:image/png;base64," + "\r\n".join(BASE64[i : i + 76] for i in range(0, len(BASE64), 76)),
        f"data:image/png;base64, {BASE64}\n",
        f"data:image/png,{urllib.parse.quote(PNG)}",
    ],
)
def test_forms_of_data_urls(url):
    assert read(url) == PNG


@pytest.mark.parametrize(
    "url",
    [
        "data:",
        "data:image/png;base64",
        "data:image/png;base64,",
        f"data:image/png;base64,{BASE64[:-3]}",
        f"data:image/png;base64,!{BASE64}",
        f"data:image/png;base64,é{BASE64}",
        f"data:image/png;base64,{BASE64[:50]}.{BASE64[50:]}",
        f"data:;base32,{BASE64}",
    ],
)
def test_broken_data_urls(url):
    assert refused(url).code in ("invalid_image_url", "invalid_image")


def test_a_bare_base64_text_is_told_what_it_lacks():
    assert "data:image/png;base64," in str(refused(BASE64))


@pytest.mark.parametrize("name", HOSTILE)
def test_images_are_checked_by_their_headers(name):
    content, error = HOSTILE[name]
    if error is None or name == "broken in the middle":
        assert read(data_url(content)) == content
        if error is None:
            decode(content)
    else:
        found = refused(data_url(content))
        assert found.code == "invalid_image"


def test_limits_are_named_with_their_flags():
    error = refused(DATA_URL, MediaRules(max_pixels=1199))
    assert "40 x 30 pixels, the limit is 1,199 (--max-pixels)" in str(error)
    read(DATA_URL, MediaRules(max_pixels=1200))
    assert "(--max-body)" in str(refused(DATA_URL, MediaRules(max_bytes=len(PNG) - 1)))


# --- what is never reached ------------------------------------------------------------------------------------------

# Whatever is allowed, these are refused, and nothing is resolved or connected to.
REFUSED = """
http://127.0.0.1/a.png
http://localhost/a.png
https://169.254.169.254/latest/meta-data/
http://2130706433/a.png
http://0x7f000001/a.png
http://0177.0.0.1/a.png
http://127.1/a.png
http://0/a.png
http://[::1]/a.png
http://[::ffff:127.0.0.1]/a.png
http://[::ffff:7f00:1]/a.png
http://[fe80::1%25eth0]/a.png
http://[fd00::1]/a.png
http://[64:ff9b::7f00:1]/a.png
http://10.0.0.1/a.png
http://192.168.0.1/a.png
http://100.64.0.1/a.png
http://images.example.org.evil.example/a.png
http://evil.example/images.example.org
http://evil.example#images.example.org
http://evil.example?images.example.org
http://images.example.org@evil.example/a.png
http://evil.example@images.example.org/a.png
http://user:password@images.example.org/a.png
http://images.example.org:password@evil.example/a.png
http://images.example.org\\@evil.example/a.png
http://evil.example\\.images.example.org/a.png
http://images.example.org:22/a.png
http://images.example.org:0/a.png
http://images.example.org:99999/a.png
http://images.example.org:8o/a.png
http://images.example.org./a.png
http://sub.images.example.org/a.png
http://images。example。org/a.png
http://ımages.example.org/a.png
http://images.example.org/a b.png
http://images.example.org/a\tb.png
http://images.example.org/\r\nX-Injected: 1
http:///a.png
http:images.example.org
https://:443/a.png
//images.example.org/a.png
ftp://images.example.org/a.png
gopher://images.example.org/_GET
dict://localhost:11211/
javascript:alert(1)
blob:https://images.example.org/1
jar:http://images.example.org!/a.png
file:///etc/passwd
file://localhost/etc/passwd
file://images.example.org/share/a.png
/etc/passwd
../../etc/passwd
C:\\a.png
about:blank
"""


@pytest.mark.parametrize("url", REFUSED.strip("\n").replace("\\t", "\t").replace("\\r\\n", "\r\n").split("\n"))
def test_urls_that_are_refused(url, monkeypatch):
    def reached(*_, **__):
        raise AssertionError("the server tried to reach it")

    for name in ("getaddrinfo", "create_connection", "socket"):
        monkeypatch.setattr(socket, name, reached)
    for rules in (RULES, MediaRules(hosts=frozenset({"images.example.org"}))):
        assert refused(url, rules).code == "invalid_image_url"


ADDRESSES = """
127.0.0.1 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.1.1 100.64.0.1 192.0.0.1 198.18.0.1 224.0.0.1 240.0.0.1
255.255.255.255 ::1 :: ::ffff:8.8.8.8 ::ffff:127.0.0.1 fe80::1 fe80::1%eth0 fc00::1 fd12::1 ff02::1 2002:7f00:1::
2001:0:1::1 64:ff9b::808:808 64:ff9b:1::1 ::7f00:1 2001:db8::1
"""


@pytest.mark.parametrize("address", ADDRESSES.split())
def test_addresses_that_are_not_connected_to(address):
    assert not fetch.is_public(address)


def test_public_addresses():
    assert all(map(fetch.is_public, ("8.8.8.8", "93.184.216.34", "2606:4700:4700::1111")))


# --- fetching -------------------------------------------------------------------------------------------------------


class Images(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        name = self.path.partition("?")[0]
        if name == "/moved":
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/a.png")
            self.end_headers()
            return
        self.send_response(404 if name == "/missing" else 200)
        if name == "/huge":
            self.send_header("Content-Length", "99999999999")
        self.end_headers()
        if name == "/slow":
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
        elif name == "/endless":
            for _ in range(300):
                self.wfile.write(b"x" * 1000)
        elif name == "/a.png":
            self.wfile.write(PNG)

    def log_message(self, *_):
        pass


@pytest.fixture
def images(monkeypatch):
    """A server of images under the name images.test, whose address counts as a public one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Images)
    server.asked, server.resolved = [], []
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    real = socket.getaddrinfo

    def resolve(host, port, *args, **options):
        if host != "images.test":
            return real(host, port, *args, **options)
        server.resolved.append(host)
        return real("127.0.0.1", port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")
    server.rules = MediaRules(hosts=frozenset({f"images.test:{server.server_port}"}), max_bytes=100_000, seconds=0.5)
    yield server
    server.shutdown()
    server.server_close()


def test_an_allowed_host(images):
    assert read(f"HTTP://Images.TEST:{images.server_port}/a.png?x=1#y", images.rules) == PNG
    ((path, headers),) = images.asked
    assert path == "/a.png?x=1" and headers["Host"] == f"images.test:{images.server_port}"
    assert not {"Cookie", "Authorization"} & headers.keys()
    assert images.resolved == ["images.test"]  # once: a second answer could be another


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/moved", "redirects are not followed"),
        ("/missing", "status 404"),
        ("/huge", "more than 100,000 bytes"),
        ("/endless", "more than 100,000 bytes"),
        ("/slow", "no whole answer in 0.5 s"),
    ],
)
def test_what_is_not_fetched(images, path, error):
    began = time.monotonic()
    found = refused(f"http://images.test:{images.server_port}{path}", images.rules)
    assert found.code == "image_not_fetched" and error in str(found) and len(images.asked) == 1
    assert time.monotonic() - began < 4  # a slow one sends for five seconds


def test_a_page_is_no_image(images):
    assert refused(f"http://images.test:{images.server_port}/page", images.rules).code == "invalid_image"


def test_a_name_of_a_private_address(images, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("127.0.0.1", 80))])
    found = refused(f"http://images.test:{images.server_port}/a.png", images.rules)
    assert found.code == "invalid_image_url" and "not public" in str(found) and not images.asked


def test_hosts_of_the_flag():
    assert fetch.check_host("Images.Example.org") == "images.example.org"
    assert fetch.check_host("images.example.org:8443") == "images.example.org:8443"
    for wrong in ("https://a.example", "a.example/x", "a b", "*.example", "", "a:b"):
        with pytest.raises(ValueError, match="is no host"):
            fetch.check_host(wrong)


# --- files ----------------------------------------------------------------------------------------------------------


def test_files_of_the_folder(tmp_path):
    folder = tmp_path / "media"
    (folder / "sub").mkdir(parents=True)
    for path in (folder / "a.png", folder / "sub/b c.png", tmp_path / "secret.png"):
        path.write_bytes(PNG)
    (folder / "inside.png").symlink_to("sub/b c.png")
    (folder / "outside.png").symlink_to("../secret.png")
    (folder / "up").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    rules = MediaRules(folder=folder)
    for url in ("a.png", "sub/../a.png", f"file://{folder}/a.png", str(folder / "a.png"), "inside.png"):
        assert read(url, rules) == PNG
    assert read(f"file://localhost{folder}/sub/b%20c.png", rules) == PNG
    for url in (
        *("../secret.png", "outside.png", "up/secret.png", f"{tmp_path}/secret.png", "file:///etc/passwd"),
        *("sub/%2e%2e/%2e%2e/secret.png", "missing.png", "sub", "loop", "a\0.png", "/dev/zero", "", "a" * 5000),
    ):
        assert refused(url, rules).code == "invalid_image_url", url
    (tmp_path / "media2").mkdir()
    (tmp_path / "media2/c.png").write_bytes(PNG)
    assert "not inside" in str(refused("../media2/c.png", rules))
