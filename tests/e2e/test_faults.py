"""Faults of a run of one process: killed, told to stop, damaged or full disks, losses that are not finite, slow steps.

A child is forked from a process that has imported everything; twenty imports would take longer than all the rest.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxvlm.config import MeshConfig
from jaxvlm.restore import load_params
from jaxvlm.runs import RunFolder
from jaxvlm.sharding import Rules, make_mesh
from jaxvlm.training.checkpoint import whole_steps
from jaxvlm.training.metrics import read_metrics
from tests.e2e.conftest import ROOT

SMALL = str(Path(__file__).with_name("small.py"))

SERVER = """
import json, os, sys
import jaxvlm.runs, jaxvlm.stages, jaxvlm.train
from jaxvlm.command import run

for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        exec(job["code"])
        sys.exit(run(jaxvlm.train.main, job["arguments"]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

# Calls `before(step, batch)` when a step's batch is about to go to the device; it may return another batch.
HOOK = """
import dataclasses, resource, time
import numpy as np
from jaxvlm.training import loop, watch

def hook(before, place=loop.to_devices, calls=[]):
    def to_devices(batch, *arguments):
        calls.append(1)
        return place(before(len(calls), batch) or batch, *arguments)
    loop.to_devices = to_devices
"""


class Child:
    """A training process."""

    def __init__(self, server, log):
        self._server, self.log = server, log
        self._code = None
        self.pid = int(server.stdout.readline())

    def send(self, number):
        if self._code is None:
            os.kill(self.pid, number)

    def wait(self, timeout=400):
        """Exit code and what was printed; it is killed when the time is over."""
        timer = threading.Timer(timeout, self.send, (signal.SIGKILL,))
        timer.start()
        self._code = int(self._server.stdout.readline())
        timer.cancel()
        return self._code, self.read_log()

    def read_log(self):
        return self.log.read_text() if self.log.is_file() else ""

    def end(self):
        """Ends it, if it was not waited for."""
        if self._code is None:
            self.send(signal.SIGKILL)
            self.wait()

    def wait_for(self, condition, timeout=300):
        """Waits until `condition()` and returns what it gave."""
        end = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < end, self.read_log()[-2000:]
            os.kill(self.pid, 0)  # raises if it has ended
            time.sleep(0.001)
        return found


@pytest.fixture(scope="module")
def start(environment, tmp_path_factory):
    """Starts the train command on a workdir, after `code`; one at a time."""
    logs = tmp_path_factory.mktemp("logs")
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as server:

        def start(workdir, *arguments, code="", log=None):
            for child in children[-1:]:
                child.end()
            log = log or logs / str(len(children))
            arguments = ["--config", SMALL, "--workdir", str(workdir), *arguments]
            server.stdin.write(json.dumps({"arguments": arguments, "code": code, "log": str(log)}) + "\n")
            server.stdin.flush()
            child = Child(server, log)
            children.append(child)
            return child

        children = []
        yield start
        for child in children[-1:]:
            child.end()  # a test that failed may have left it
        server.stdin.close()


def finish(child):
    code, log = child.wait()
    assert code == 0, log[-3000:]
    return log


def losses(folder):
    """Loss and gradient norm of all steps; each step has one line."""
    lines = [m for m in read_metrics(folder / "metrics.jsonl") if "loss" in m]
    assert [m["step"] for m in lines] == list(range(1, len(lines) + 1))
    return [(m["loss"], m["gradient_norm"]) for m in lines]


def last_step(folder):
    return max((m["step"] for m in read_metrics(folder / "metrics.jsonl")), default=0)


def checkpoints(folder):
    return folder / "checkpoints" / "only"


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """A run of 20 steps that nothing happened to, with checkpoints of 10, 15 and 20: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    log = finish(start(folder, "--config.profile=(2,3)", "--config.stage.only.keep_checkpoints=3"))
    assert whole_steps(checkpoints(folder)) == [10, 15, 20]
    return folder, log


def test_a_run_leaves_a_trace_and_says_where_the_time_went(undisturbed):
    folder, log = undisturbed
    assert f"profile of steps 2 to 3: {folder / 'profile' / 'only'}" in log
    assert list((folder / "profile" / "only").rglob("*.xplane.pb"))
    for what in ("waiting for data", "compiling", "saving", "evaluating"):
        assert f"% {what}" in log.splitlines()[-1]
    beat = json.loads((folder / "heartbeats" / "0.json").read_text())
    assert (beat["phase"], beat["step"], beat["host"]) == ("done", 20, socket.gethostname())


@pytest.mark.slow
def test_twenty_kills_lose_nothing(start, tmp_path):
    """SIGKILL at random moments: of the start, of steps and, most often, of a save."""
    steps, kills = 200, 20
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    finish(start(straight, f"--config.steps={steps}", f"--config.stage.only.checkpoint_every={steps}"))
    arguments = ["--resume-or-start", f"--config.steps={steps}", "--config.stage.only.checkpoint_every"]
    random, newest, moments = np.random.default_rng(0), 0, []
    metrics = killed / "metrics.jsonl"
    for kill in range(kills):
        before = metrics.stat().st_ino if metrics.exists() else None
        child = start(killed, *arguments, "2")
        wanted = ("save", "step", "save", "step", "start")[kill % 5]
        if wanted == "start":
            time.sleep(random.uniform(0, 2))
        else:
            # A resumed run first replaces the file by one without the steps that are to be done again.
            child.wait_for(lambda before=before: metrics.exists() and metrics.stat().st_ino != before)
            first, more = last_step(killed), int(random.integers(1, 9))
            child.wait_for(lambda least=first + more: last_step(killed) >= least)
            if wanted == "save":
                child.wait_for(lambda: halves(killed))
            time.sleep(random.uniform(0, 0.2))
        child.send(signal.SIGKILL)
        code, log = child.wait()
        assert code == -9, log[-3000:]
        if "resumed at" in log or wanted != "start" and newest:
            assert f"resumed at step {newest} of {steps}" in log
        assert "is damaged" not in log
        now = max(whole_steps(checkpoints(killed)), default=0)
        assert now >= newest
        newest = now
        moments.append((wanted, newest, bool(halves(killed))))
    print("wanted moment, newest checkpoint, was one half written:", moments)
    assert sum(half for *_, half in moments) >= 5 and 20 < newest < steps
    log = finish(start(killed, *arguments, str(steps)))
    assert f"resumed at step {newest} of {steps}" in log
    assert len(losses(killed)) == steps and losses(killed) == losses(straight)
    assert not halves(killed)


def halves(folder):
    """Checkpoints that were begun and not finished."""
    return list(checkpoints(folder).glob("*.orbax-checkpoint-tmp*"))


def test_a_run_killed_between_its_last_save_and_its_ledger_writes_it_later(undisturbed, start, tmp_path):
    folder = tmp_path / "run"
    code = """
import signal
def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)
jaxvlm.runs.RunFolder.save_ledger = killed
"""
    assert start(folder, code=code).wait()[0] == -9
    assert whole_steps(checkpoints(folder))[-1] == 20 and not (folder / "ledger.json").exists()
    (folder / "ledger.json").write_text('{"only": {"records"')  # by a disk that failed
    assert "resumed at step 20 of 20" in finish(start(folder, "--resume"))
    assert (folder / "ledger.json").read_text() == (undisturbed[0] / "ledger.json").read_text()
    assert (folder / "loss.png").exists() and losses(folder) == losses(undisturbed[0])
    assert "stage only is finished already" in finish(start(folder, "--resume"))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def scramble(path):
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncate, "bytes, [0-9]+ were written"),
        (Path.unlink, "is missing"),
        (scramble, r"is damaged \(\w*(Error|Exception): "),
    ],
)
def test_a_damaged_checkpoint_is_set_aside(undisturbed, start, tmp_path, harm, reason):
    """Of step 15 there is half of the largest file, or nothing, or zeros: the run goes on from step 10."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[0], folder)
    shutil.rmtree(checkpoints(folder) / "20")
    newest = checkpoints(folder) / "15"
    harm(max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size))
    log = finish(start(folder, "--resume"))
    assert f"WARNING: the checkpoint {newest} is damaged" in log and "; going back to step 10" in log
    assert re.search(reason, log), log
    assert "resumed at step 10 of 20" in log
    assert losses(folder) == losses(undisturbed[0])
    assert whole_steps(checkpoints(folder)) == [15, 20]
    assert [path.name.split("-")[0] for path in (folder / "checkpoints" / "only.damaged").iterdir()] == ["15"]


def test_a_damaged_result_is_one_message(undisturbed, start, tmp_path, environment):
    """Weights in place of which there are zeros: only who reads them notices."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[0], folder)
    last = checkpoints(folder) / "20"
    scramble(max((last / "params").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0))
    test = f"--config.evaluation.source={environment['JAXVLM_TEST_DATA']}"
    code, log = start(folder, "--resume", test).wait()
    assert code == 2 and "Traceback" not in log, log[-3000:]
    assert f"error: the checkpoint {last} is damaged (" in log and "move it away to use the one before it" in log
    last.rename(tmp_path / "20")
    assert "resumed at step 15 of 20" in finish(start(folder, "--resume"))
    assert losses(folder) == losses(undisturbed[0])


def test_a_full_disk_does_not_stop_a_run(undisturbed, start, tmp_path):
    """From step 8 to 15 no file may grow beyond 256 KB: the save of step 10 fails, and is the next one's to tell.

    The embedding alone has twice as much, so there is such a file however orbax puts arrays together; the log, with all
    that the libraries below say of each array, has less.
    """
    code = f"""{HOOK}
import os
def before(step, batch):
    while step == 8 and not os.path.exists("{checkpoints(tmp_path) / "5"}"):
        time.sleep(0.01)
    if step in (8, 16):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**18 if step == 8 else -1, -1))
hook(before)
"""
    log = finish(start(tmp_path, code=code))
    assert f"ERROR: the checkpoint of step 10 could NOT be saved in {checkpoints(tmp_path)}" in log
    assert "newest checkpoint, 5. Is the disk full?" in log
    assert "never retrieved" not in log
    assert losses(tmp_path) == losses(undisturbed[0])
    assert max(whole_steps(checkpoints(tmp_path))) == 20 and not halves(tmp_path)


def test_a_device_that_is_too_small_is_told_with_phase_and_step(start, tmp_path):
    code = f"""{HOOK}
import jax.numpy as jnp
def before(step, batch):
    if step == 7:
        jnp.zeros(2**46, jnp.uint8)
hook(before)
"""
    code, log = start(tmp_path, code=code).wait()
    assert code == 2 and "Traceback" not in log, log[-3000:]
    assert "error: a device has too little memory while waiting for data, at step 7 (RESOURCE_EXHAUSTED" in log
    assert whole_steps(checkpoints(tmp_path)) == [5]


def test_a_log_on_a_full_disk_does_not_stop_a_run(undisturbed, start, tmp_path, environment):
    """Neither the curves on standard error nor the table of the test on standard output."""
    test = [f"--config.evaluation.source={environment['JAXVLM_TEST_DATA']}", "--config.evaluation.max_new_tokens=1"]
    code, _ = start(tmp_path, *test, log=Path("/dev/full")).wait()
    assert code == 0 and losses(tmp_path) == losses(undisturbed[0])
    assert (tmp_path / "evaluation.json").is_file()


def test_after_ctrl_c_it_resumes_bit_equal(undisturbed, start, tmp_path):
    code = f"{HOOK}hook(lambda step, batch: time.sleep(60 if step == 8 else 0.0))\n"
    child = start(tmp_path, code=code)
    child.wait_for(lambda: last_step(tmp_path) >= 6)
    child.send(signal.SIGINT)
    code, log = child.wait()
    assert code == 130 and "Traceback" not in log
    finish(start(tmp_path, "--resume"))
    assert losses(tmp_path) == losses(undisturbed[0])


def test_told_to_stop_it_saves_and_goes_on_later(undisturbed, start, tmp_path):
    told = tmp_path / "told"
    code = f"""{HOOK}
import os
def before(step, batch):
    while step == 7 and not os.path.exists("{told}"):
        time.sleep(0.01)
hook(before)
"""
    child = start(tmp_path, "--config.stage.only.eval_every=7", code=code)
    child.wait_for(lambda: last_step(tmp_path) >= 5)  # a step is written down while the next one runs
    child.send(signal.SIGTERM)
    told.touch()
    code, log = child.wait()
    assert code == 75 and "preempted: --resume" in log, log[-3000:]
    assert "heldout_loss" not in log  # there is no time for an evaluation
    stopped = len(losses(tmp_path))
    assert stopped == 7 and max(whole_steps(checkpoints(tmp_path))) == stopped
    log = finish(start(tmp_path, "--resume-or-start"))
    assert f"resumed at step {stopped} of 20" in log
    assert losses(tmp_path) == losses(undisturbed[0])


def test_told_to_stop_in_the_last_step_it_does_not_begin_the_test(start, tmp_path, environment):
    code = f"{HOOK}\nimport os, signal\n"
    code += "hook(lambda step, batch: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None)\n"
    test = f"--config.evaluation.source={environment['JAXVLM_TEST_DATA']}"
    code, log = start(tmp_path, "--config.steps=2", test, code=code).wait()
    assert code == 75, log[-3000:]
    assert (tmp_path / "ledger.json").exists() and not (tmp_path / "evaluation.json").exists()


# A weight of a token that is not a number makes loss and gradients so, in the device's own arithmetic.
NAN = (
    HOOK
    + """
def before(step, batch):
    if step in STEPS:
        np.save(f"{job['arguments'][3]}/tokens-{step}.npy", batch.tokens)
        return batch._replace(loss_weights=np.full_like(batch.loss_weights, np.nan))
hook(before)
"""
)


def test_losses_that_are_not_finite_stop_a_run(undisturbed, environment, start, tmp_path):
    code, log = start(tmp_path, code=NAN.replace("STEPS", "range(9, 99)")).wait()
    assert code == 2, log[-3000:]
    assert "not finite in 3 steps in a row, the last is step 11 of only" in log and "on_nonfinite=skip" in log
    assert "Traceback" not in log
    assert whole_steps(checkpoints(tmp_path)) == [5]  # not 10
    known = {record["id"] for record in json.loads(Path(environment["JAXVLM_TEST_DATA"]).read_text())}
    folders = [tmp_path / "nonfinite" / f"only-{step}" for step in (9, 10, 11)]
    assert sorted((tmp_path / "nonfinite").iterdir()) == sorted(folders)
    for step, folder in zip((9, 10, 11), folders, strict=True):
        assert str(folder) in log
        arrays = np.load(folder / "process-0.npz")
        np.testing.assert_array_equal(arrays["tokens"], np.load(tmp_path / f"tokens-{step}.npy"))
        rows = json.loads((folder / "process-0.json").read_text())
        ids = [record["id"] for row in rows for record in row]
        assert len(rows) == 8 and ids and set(ids) <= known
        with_images = [i for i, row in enumerate(rows) if any(record["images"] for record in row)]
        assert sorted(folder.glob("*.png")) == sorted(folder / f"process-0-row-{i}.png" for i in with_images)
    # Mended, it goes on from the last save.
    assert "resumed at step 5 of 20" in finish(start(tmp_path, "--resume"))
    assert losses(tmp_path) == losses(undisturbed[0])


def test_an_update_that_is_not_finite_can_be_left_out(undisturbed, start, tmp_path):
    stage = "--config.stage.only"
    arguments = [f"{stage}.on_nonfinite=skip", f"{stage}.checkpoint_every=1", f"{stage}.keep_checkpoints=30"]
    log = finish(start(tmp_path, *arguments, "--config.steps=20", code=NAN.replace("STEPS", "(7,)")))
    assert "step 7 of only: loss nan" in log and "the update is left out" in log
    found = losses(tmp_path)
    assert found[:6] == losses(undisturbed[0])[:6]
    assert [step for step, values in enumerate(found, 1) if not np.isfinite(values).all()] == [7]
    six, seven, eight = (params(tmp_path, step) for step in (6, 7, 8))
    assert all(map(np.array_equal, six, seven)) and not all(map(np.array_equal, seven, eight))


def params(folder, step):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    return jax.tree.leaves(load_params(RunFolder(folder), RunFolder(folder).load_config(), mesh, Rules(), step=step)[0])


def test_a_slow_step_is_reported_and_the_heartbeat_names_it(start, tmp_path):
    code = HOOK + (
        "watch._BEAT_SECONDS, watch._SLOW_SECONDS = 0.1, 0.5\n"
        "hook(lambda step, batch: time.sleep(60 if step == 12 else 0.02))\n"
    )
    child = start(tmp_path, code=code)
    line = child.wait_for(lambda: next((x for x in child.read_log().splitlines() if x.startswith("slow: step 12")), ""))
    beat = json.loads((tmp_path / "heartbeats" / "0.json").read_text())
    assert (beat["phase"], beat["step"], beat["pid"]) == ("data", 12, child.pid)
    assert "slow: step 12 has taken" in line and "times the median of" in line
    assert f"process 0 on {socket.gethostname()}: data of step 12 for" in line
    child.send(signal.SIGKILL)
    assert child.wait()[0] == -9
