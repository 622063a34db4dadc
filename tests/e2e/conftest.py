import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvlm.training.checkpoint_files import whole_steps
from tests.e2e import small_run
from tests.xla import LEVEL

ROOT = Path(__file__).parents[2]
RECIPE = str(Path(__file__).with_name("recipe.py"))
COLORS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (30, 30, 230)}


def write_data(folder: Path, count: int = 90) -> Path:
    """A LLaVA file of `count` conversations of one to three rounds about one or two noisy squares."""
    random = np.random.default_rng(0)
    records = []
    for i in range(count):
        names = [str(random.choice(list(COLORS))) for _ in range(1 + i % 2)]
        for k, name in enumerate(names):
            noise = random.integers(-20, 21, (24, 20, 3))
            pixels = np.clip(noise + COLORS[name], 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}_{k}.png")
        turns = [("human", "<image>\n" * len(names) + "what color is it?"), ("gpt", names[0])]
        for color in list(COLORS)[: i % 3]:
            turns += [("human", f"is it {color}?"), ("gpt", "yes" if names[0] == color else "no")]
        images = [f"{i}_{k}.png" for k in range(len(names))]
        conversation = [{"from": who, "value": text} for who, text in turns]
        records.append({"id": str(i), "image": images[0] if i % 4 == 0 else images, "conversations": conversation})
    path = folder / "data.json"
    path.write_text(json.dumps(records))
    return path


def write_text(folder: Path, count: int = 90) -> Path:
    """A LLaVA file of `count` conversations of one to three rounds without images."""
    records = []
    for i in range(count):
        rounds = [(("human", f"what is {i % 7} and {k}?"), ("gpt", f"it is {i % 7 + k}")) for k in range(1 + i % 3)]
        conversation = [{"from": who, "value": text} for pair in rounds for who, text in pair]
        records.append({"id": str(i), "conversations": conversation})
    path = folder / "text.json"
    path.write_text(json.dumps(records))
    return path


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Variables of a command's process: the data, and one device."""
    folder = tmp_path_factory.mktemp("data")
    variables = {
        "JAXVLM_TEST_DATA": str(write_data(folder)),
        "JAXVLM_TEST_TEXT": str(write_text(folder)),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": LEVEL,
        "PYTHONPATH": str(ROOT),
    }
    return os.environ | variables


class Child:
    """A process forked from the server."""

    def __init__(self, pid: int, log: Path, code: Path):
        self.pid, self.log, self._code = pid, log, code

    def poll(self):
        """Its exit code, or None while it runs."""
        return int(self._code.read_text()) if self._code.exists() else None

    def send(self, number):
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(self.pid, number)

    def kill(self):
        self.send(signal.SIGKILL)

    def terminate(self):
        self.send(signal.SIGTERM)

    def wait(self, timeout=400):
        """Exit code and what was printed; it is killed when the time is over."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
            time.sleep(0.01)
        return code, self.read_log()

    def read_log(self):
        return self.log.read_text() if self.log.is_file() else ""

    def wait_for(self, condition, timeout=300):
        """Waits until `condition()` and returns what it gave."""
        end = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < end and self.poll() is None, self.read_log()[-2000:]
            time.sleep(0.001)
        return found


class Server:
    """Forks training processes; it starts with the first of them."""

    def __init__(self, environment, folder):
        self._environment, self._folder, self._process = environment, folder, None
        self.children = []

    def fork(self, *arguments, code="", log=None, **variables):
        """Starts the train command in a child, after `code` and with these environment variables."""
        if self._process is None:
            start = [sys.executable, "-m", "tests.e2e.forkserver", self._folder]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            self._process = subprocess.Popen(start, env=self._environment, cwd=ROOT, **pipes)
        log = log or self._folder / f"log-{len(self.children)}"
        job = {"arguments": list(map(str, arguments)), "code": code, "log": str(log), "environment": variables}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        self.children.append(Child(pid, log, self._folder / str(pid)))
        return self.children[-1]

    def end_children(self):
        for child in self.children:
            child.kill()

    def close(self):
        self.end_children()
        if self._process is not None:
            self._process.stdin.close()
            self._process.wait()


@pytest.fixture(scope="session")
def server(environment, tmp_path_factory):
    server = Server(environment, tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(autouse=True)
def no_child_is_left(server):
    """A test that failed may have left a run of 5,000 steps beside the tests that follow."""
    yield
    server.end_children()


class Processes:
    """The processes of one run on loopback."""

    def __init__(self, server, arguments, *, count, devices, code="", each=(), **variables):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        variables["XLA_FLAGS"] = f"{LEVEL} --xla_force_host_platform_device_count={devices}"
        several = {"JAXVLM_NUM_PROCESSES": str(count), "JAXVLM_COORDINATOR": address} if count > 1 else {}
        self.children = []
        for i in range(count):
            own = several | ({"JAXVLM_PROCESS_ID": str(i)} if several else {})
            more = each[i] if each else ()
            self.children.append(server.fork(*arguments, *more, code=code, **variables, **own))

    def wait(self, timeout=400):
        """Exit codes and what each process printed; those that run when the time is over are killed."""
        end = time.monotonic() + timeout
        ended = [child.wait(max(1.0, end - time.monotonic())) for child in self.children]
        return [code for code, _ in ended], [log for _, log in ended]

    def wait_for(self, condition, timeout=300):
        """Waits until `condition()`, while all of them run."""
        end = time.monotonic() + timeout
        while not condition():
            alive = all(child.poll() is None for child in self.children)
            assert alive and time.monotonic() < end, [child.read_log()[-2000:] for child in self.children]
            time.sleep(0.02)


@pytest.fixture(scope="session")
def start_processes(server):
    """Starts `jaxvlm.train` with `count` processes of `devices` devices; see `Processes`."""
    return lambda *arguments, **options: Processes(server, arguments, **options)


@pytest.fixture(scope="session")
def start(server):
    """Starts a small recipe on a workdir, in one process of one device, after `code`."""
    return lambda workdir, *arguments, recipe=small_run.TEXT_RECIPE, **options: server.fork(
        *small_run.arguments(workdir, *arguments, recipe=recipe), **options
    )


@pytest.fixture(scope="session")
def undisturbed(start, tmp_path_factory):
    """A run of 20 steps that nothing happened to, with checkpoints of 10, 15 and 20: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    log = small_run.finish(start(folder, "--config.profile=(2,3)", "--config.stage.only.keep_checkpoints=3"))
    assert whole_steps(small_run.checkpoints(folder)) == [10, 15, 20]
    return folder, log
