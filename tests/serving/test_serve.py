"""The command: its mistakes are told before the weights are read, and a signal ends it with 0."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from jaxvlm import serve
from jaxvlm.command import run
from jaxvlm.serving.access import Access, ApiError, is_loopback, read_key
from tests import tiny
from tests.inference import tiny_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    tiny_run.make_run(root / "run", tiny.config(tiny_run.recipe(tiny_run.write_data(root))))
    return root


def fail(capsys, *arguments):
    capsys.readouterr()
    assert run(serve.main, list(map(str, arguments))) == 2
    errors = capsys.readouterr().err
    assert errors.count("error: ") == 1 and "Traceback" not in errors
    return errors


def test_mistakes(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("JAXVLM_API_KEY", raising=False)
    assert "one model is needed" in fail(capsys)
    missing = ("--run", tmp_path / "nowhere")  # no message may come from the model, which is opened later
    assert "--host 0.0.0.0 lets other machines ask, and there is no key" in fail(capsys, *missing, "--host", "0.0.0.0")
    assert "no key" in fail(capsys, *missing, "--host", "::")
    assert "cannot be read" in fail(capsys, *missing, "--api-key-file", tmp_path / "none.txt")
    assert "--allow-media" in fail(capsys, *missing, "--allow-media", tmp_path / "none")
    assert "'https://a.example' is no host" in fail(capsys, *missing, "--allow-url", "https://a.example")
    assert "--max-pixels is below 0; --grace is below 0" in fail(capsys, *missing, "--max-pixels=-1", "--grace=-1")
    assert "is not the folder of a run" in fail(capsys, *missing)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = fail(capsys, "--run", folder / "run", "--port", port)
        assert f"--port {port}: " in error and "choose another port" in error
    assert "expected 1 or more" in fail(capsys, "--run", folder / "run", "--port", 0, "--slots", 0)


def test_a_model_that_writes_no_conversations(folder, capsys, tmp_path):
    config = tiny_run.recipe(folder / "data.json")
    config.stage.finetune.data.template, config.stage.finetune.data.system = "plain", None
    tiny_run.make_run(tmp_path / "run", tiny.config(config))
    error = fail(capsys, "--run", tmp_path / "run", "--port", 0)
    assert 'the template "plain" writes no conversations' in error and "--template vicuna_v1" in error


def test_keys(tmp_path):
    file = tmp_path / "key"
    file.write_text("  s3cret\n")
    assert read_key(str(file), {"JAXVLM_API_KEY": "other"}) == b"s3cret"
    assert read_key(None, {"JAXVLM_API_KEY": "other"}) == b"other" and read_key(None, {}) is None
    for text in ("", "\n", "two words", "schlüssel"):
        file.write_text(text)
        with pytest.raises(Exception, match="one word of printable ASCII"):
            read_key(str(file), {})
        with pytest.raises(Exception, match="JAXVLM_API_KEY"):
            read_key(None, {"JAXVLM_API_KEY": text})


def test_addresses():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "LocalHost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "", "10.0.0.1", "localhost.example", "127.0.0.1.example", "a b")))
    Access(loopback=False).check("/v1/models", {})
    with pytest.raises(ApiError, match="Host"):
        Access().check("/health", {})


@pytest.mark.nightly
def test_the_command_serves_until_a_signal(folder):
    """In a process of its own; the same parts are tested together in test_end_to_end.py."""
    command = [
        sys.executable,
        "-m",
        "jaxvlm.serve",
        "--run",
        str(folder / "run"),
        "--port",
        "0",
        "--slots",
        "1",
        "--json",
    ]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        while not (
            found := re.search(r"ready after .* jaxvlm at (http://127\.0\.0\.1:\d+)/v1", process.stderr.readline())
        ):
            assert process.poll() is None
        body = b'{"messages": [{"role": "user", "content": "say hello"}], "max_tokens": 4}'
        with urllib.request.urlopen(f"{found[1]}/v1/chat/completions", body, timeout=60) as reply:
            assert b'"chat.completion"' in reply.read()
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0 and '"completion_tokens"' in out.splitlines()[-1]
    finally:
        process.kill()
