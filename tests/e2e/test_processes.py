"""One run on several real processes: the same losses, other numbers of them after a stop, and faults of one of them."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from jaxvlm.data.sources.load import id_hash
from jaxvlm.training.metrics import read_metrics

SMALL = str(Path(__file__).with_name("small.py"))

pytestmark = pytest.mark.slow


def losses(folder):
    lines = [m for m in read_metrics(folder / "metrics.jsonl") if "loss" in m]
    assert [m["step"] for m in lines] == list(range(1, len(lines) + 1))
    return np.array([m["loss"] for m in lines])


def finish(processes):
    codes, logs = processes.wait()
    assert set(codes) == {0}, "\n".join(log[-2500:] for log in logs)
    return logs


def arguments(folder, *more):
    return ("--config", SMALL, "--workdir", folder, *more)


def run_alone(start, folder, devices):
    """Losses of one process with so many devices."""
    finish(start(*arguments(folder), count=1, devices=devices))
    return losses(folder)


@pytest.fixture(scope="module")
def alone(start, tmp_path_factory):
    return run_alone(start, tmp_path_factory.mktemp("alone"), 4)


@pytest.mark.parametrize("count", [2, 4])
def test_losses_are_those_of_one_process(start, environment, alone, tmp_path, count):
    """2 x 2 devices against 4 of one process, 4 x 2 against 8; two processes also answer the test together."""
    evaluated = ["--config.stage.only.eval_every=20"]
    if count == 2:
        evaluated += [f"--config.evaluation.source={environment['JAXVLM_TEST_DATA']}"]
        evaluated += ["--config.evaluation.batch_size=96", "--config.evaluation.max_new_tokens=1"]
    logs = finish(start(*arguments(tmp_path, *evaluated), count=count, devices=2))
    ours, want = losses(tmp_path), alone if count == 2 else run_alone(start, tmp_path / "alone", 8)
    print("largest difference", np.abs(ours - want).max())
    np.testing.assert_allclose(ours, want, rtol=1e-6)
    assert (tmp_path / "evaluation.json").exists() == (count == 2)
    assert "of the time:" in logs[0] and "of the time:" not in logs[1]
    assert sorted(path.name for path in (tmp_path / "heartbeats").iterdir()) == [f"{i}.json" for i in range(count)]
    beat = json.loads((tmp_path / "heartbeats" / "1.json").read_text())
    assert beat["phase"] == "done" and beat["process"] == 1


def test_a_run_goes_on_with_other_processes_and_devices(start, alone, tmp_path):
    """Ten steps by two processes, told to stop; five more by one with two devices; the rest by one with four."""
    slow = "import time, sys, jaxvlm.train as t; from jaxvlm.command import run; from jaxvlm.training import loop\n"
    slow += "place = loop.to_devices\nloop.to_devices = lambda *a: time.sleep(0.3) or place(*a)\n"
    slow += "sys.exit(run(t.main, sys.argv[1:]))"
    running = start(*arguments(tmp_path, "--resume-or-start"), count=2, devices=2, code=slow)
    wait_for(running, lambda: len(read_metrics(tmp_path / "metrics.jsonl")) >= 7)
    running.children[1].terminate()  # one of them is told, both stop
    codes, logs = running.wait()
    assert codes == [75, 75], logs
    stopped = len(losses(tmp_path))
    assert 7 <= stopped < 20
    logs = finish(start(*arguments(tmp_path, "--resume-or-start"), count=1, devices=2))
    assert f"resumed at step {stopped} of 20" in logs[0]
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=1e-5)
    assert len(losses(tmp_path)) == 20


def test_a_checkpoint_that_one_of_them_cannot_read_is_set_aside(start, alone, tmp_path):
    """Zeros in what only process 1 reads of step 15: both go on from step 10, and neither waits for the other."""
    finish(start(*arguments(tmp_path, "--config.stage.only.keep_checkpoints=3"), count=2, devices=2))
    folder = tmp_path / "checkpoints" / "only"
    shutil.rmtree(folder / "20")
    for path in (folder / "15" / "params" / "ocdbt.process_1").rglob("*"):
        if path.is_file() and path.stat().st_size > 5000:
            path.write_bytes(bytes(path.stat().st_size))
    logs = finish(start(*arguments(tmp_path, "--resume"), count=2, devices=2))
    assert f"WARNING: the checkpoint {folder / '15'} is damaged" in logs[0] and "resumed at step 10 of 20" in logs[0]
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=1e-6)


def test_images_that_break_late_are_counted_over_all_processes(start, environment, tmp_path):
    """Each process meets some of them, in the first half of a run that is stopped and goes on."""
    data = tmp_path / "data"
    shutil.copytree(Path(environment["JAXVLM_TEST_DATA"]).parent, data)
    for number in range(20, 40):
        picture = data / f"{number}_0.png"
        whole = picture.read_bytes()
        picture.write_bytes(whole[:60] + whole[70:])
    own = (f"--config.stage.only.data.source={data / 'data.json'}", "--config.stage.only.data.on_bad=skip")
    told = (
        "import os, signal, sys, jaxvlm.train as t; from jaxvlm.command import run; from jaxvlm.training import loop\n"
    )
    told += "place, calls = loop.to_devices, []\ndef to_devices(*a):\n    calls.append(1)\n"
    told += "    if len(calls) == 12: os.kill(os.getpid(), signal.SIGTERM)\n    return place(*a)\n"
    told += "loop.to_devices = to_devices\nsys.exit(run(t.main, sys.argv[1:]))"
    codes, logs = start(*arguments(tmp_path / "run", *own), count=2, devices=2, code=told).wait()
    assert codes == [75, 75] and all("nothing of this record is trained on" in log for log in logs), logs
    finish(start(*arguments(tmp_path / "run", *own, "--resume"), count=1, devices=4))
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())["only"]
    heldout = sum(20 <= number < 40 for number in heldout_ids())
    assert ledger["rejected"] == {
        "total": 20 - heldout,
        "reasons": {"image_broken, found while training": 20 - heldout},
    }
    assert ledger["read"] == 90


def heldout_ids():
    return [n for n in range(90) if id_hash(str(n)) < 0.1 * 2.0**64]


def wait_for(running, condition, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end or any(child.poll() is not None for child in running.children):
            running.kill()  # else they go on beside the tests that follow, for up to 5,000 steps
            raise AssertionError([log.read_text()[-2000:] for log in running.logs])
        time.sleep(0.05)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(start, tmp_path, victim):
    running = start(*arguments(tmp_path, "--config.steps=5000"), count=2, devices=2)
    wait_for(running, lambda: len(read_metrics(tmp_path / "metrics.jsonl")) >= 7)
    running.children[victim].kill()
    began = time.monotonic()
    codes, logs = running.wait(60)
    print("the other one ended after", time.monotonic() - began, "s")
    assert codes[victim] == -9 and codes[1 - victim] == 1
    assert f"process {victim} is gone" in logs[1 - victim] and "--resume-or-start" in logs[1 - victim]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("raise UserError('no such image')", "no such image"),
        ("jax.numpy.zeros(2**46, 'uint8')", "a device has too little memory"),
    ],
)
def test_a_failure_of_one_is_told_by_all(start, tmp_path, failure, said):
    fails = "import sys, jax, jaxvlm.train as t; from jaxvlm.command import run; from jaxvlm.errors import UserError\n"
    fails += "import jaxvlm.stages as s\nindex = s.index_rows\ndef index_rows(*a, **k):\n"
    fails += f"    if k['process'][0] == 1: {failure}\n"
    fails += "    return index(*a, **k)\ns.index_rows = index_rows\nsys.exit(run(t.main, sys.argv[1:]))"
    codes, logs = start(*arguments(tmp_path), count=2, devices=2, code=fails).wait(60)
    assert codes == [2, 2] and f"process 1 stopped: {said}" in logs[0]


def test_a_failure_of_one_in_a_step_is_told_by_all(start, tmp_path):
    """The other waits in the step that the one that fails does not reach."""
    fails = "import sys, jaxvlm.train as t; from jaxvlm.command import run; from jaxvlm.errors import UserError\n"
    fails += "from jaxvlm import processes; from jaxvlm.training import loop\nplace, calls = loop.to_devices, []\n"
    fails += "def to_devices(*a):\n    calls.append(1)\n    if processes.index() == 1 and len(calls) == 3:\n"
    fails += "        raise UserError('no such image')\n    return place(*a)\n"
    fails += "loop.to_devices = to_devices\nsys.exit(run(t.main, sys.argv[1:]))"
    codes, logs = start(*arguments(tmp_path), count=2, devices=2, code=fails).wait(200)
    assert codes == [2, 2] and "process 1 stopped: no such image" in logs[0]


def test_other_settings_of_a_process_are_named(start, tmp_path):
    running = start(*arguments(tmp_path), count=2, devices=2, each=[(), ("--config.seed=7",)])
    codes, logs = running.wait(60)
    assert codes == [2, 2]
    for log in logs:
        assert "config.seed is 42 on process 0 and 7 on process 1" in log, log
    assert not (tmp_path / "checkpoints").exists()


def test_other_data_of_a_process_is_named(start, tmp_path):
    """As where a host's copy of the data is another one."""
    code = "import dataclasses, sys, jaxvlm.train as t; from jaxvlm.command import run\n"
    code += "import jaxvlm.stages as s\nindex = s.index_rows\ndef index_rows(samples, **k):\n"
    code += "    share = 0.1 + 0.2 * k['process'][0]\n"
    code += "    samples.config = dataclasses.replace(samples.config, heldout=share)\n"
    code += "    return index(samples, **k)\ns.index_rows = index_rows\nsys.exit(run(t.main, sys.argv[1:]))"
    codes, logs = start(*arguments(tmp_path), count=2, devices=2, code=code).wait(100)
    assert codes == [2, 2] and "the data of stage only is '" in logs[0] and "on process 1" in logs[0]


JOIN = """
import argparse, os, sys
from jaxvlm import processes
from jaxvlm.command import add_process_flags, run
processes._JOIN_SECONDS = 2
parser = argparse.ArgumentParser()
add_process_flags(parser)
if os.environ.get("JAXVLM_PROCESS_ID") != os.environ.get("ABSENT", "none"):
    sys.exit(run(lambda argv: processes.connect(parser.parse_args(argv)), sys.argv[1:]))
"""


@pytest.mark.parametrize("own", [0, 1])
def test_one_that_is_left_alone_says_so(start, own, monkeypatch, environment):
    monkeypatch.setitem(environment, "ABSENT", str(1 - own))
    codes, logs = start(count=2, devices=1, code=JOIN).wait(120)
    assert codes[own] == 1  # which is started again
    assert f"error: process {own} of 2: the others were not all there within 2 seconds" in logs[own]


def test_without_a_cluster_auto_is_a_mistake(command):
    shown = command("", "--distributed", "auto", code=JOIN)
    assert shown.returncode == 2 and shown.stderr.startswith("error: --distributed auto finds no cluster here")


def test_a_second_run_is_refused(start, tmp_path):
    running = start(*arguments(tmp_path, "--config.steps=5000"), count=1, devices=1)
    wait_for(running, lambda: (tmp_path / "checkpoints").exists())
    codes, logs = start(*arguments(tmp_path, "--resume", "--config.steps=5000"), count=1, devices=1).wait(60)
    assert codes == [2] and "is in use by another run" in logs[0] and str(running.children[0].pid) in logs[0]
    running.children[0].kill()
    running.wait()
    again = start(*arguments(tmp_path, "--resume", "--config.steps=5000"), count=1, devices=1)
    wait_for(again, lambda: "resumed at step" in again.logs[0].read_text() or "only:" in again.logs[0].read_text())
    again.children[0].terminate()
    assert again.wait()[0] == [75]
