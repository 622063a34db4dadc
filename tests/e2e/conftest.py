import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Variables of a command's process: the data, and one device."""
    folder = tmp_path_factory.mktemp("data")
    variables = {
        "JAXVLM_TEST_DATA": str(write_data(folder)),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": LEVEL,
        "PYTHONPATH": str(ROOT),
    }
    return os.environ | variables


@pytest.fixture(scope="session")
def command(environment):
    """Runs `python -m jaxvlm.NAME ARGUMENTS...` in a process of its own, as a user would."""

    def run(name, *arguments, code=None):
        start = ["-c", code] if code else ["-m", f"jaxvlm.{name}"]
        return subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=500,
        )

    return run


class Processes:
    """The processes of one run on loopback."""

    def __init__(self, environment, folder, arguments, *, count, devices, code=None, each=()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        variables = {
            "XLA_FLAGS": f"{LEVEL} --xla_force_host_platform_device_count={devices}",
            "JAXVLM_NUM_PROCESSES": str(count),
        }
        variables |= {"JAXVLM_COORDINATOR": address} if count > 1 else {}
        if count == 1:
            variables.pop("JAXVLM_NUM_PROCESSES")
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"log-{i}" for i in range(count)]
        start = ["-c", code] if code else ["-m", "jaxvlm.train"]
        self.children = []
        for i, log in enumerate(self.logs):
            own = variables | ({"JAXVLM_PROCESS_ID": str(i)} if count > 1 else {})
            more = each[i] if each else ()
            with log.open("w") as out:
                self.children.append(
                    subprocess.Popen(
                        [sys.executable, *start, *map(str, arguments), *more],
                        env=environment | own,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        cwd=ROOT,
                    )
                )

    def kill(self):
        for child in self.children:
            child.kill()

    def wait(self, timeout=300):
        """Exit codes and what each process printed."""
        end = time.monotonic() + timeout
        try:
            codes = [child.wait(max(1.0, end - time.monotonic())) for child in self.children]
        finally:
            self.kill()
        return codes, [log.read_text() for log in self.logs]


@pytest.fixture(scope="session")
def start(environment, tmp_path_factory):
    """Starts `jaxvlm.train` with `count` processes of `devices` devices; see `Processes`."""

    def start(*arguments, **options):
        return Processes(environment, tmp_path_factory.mktemp("logs"), arguments, **options)

    return start
