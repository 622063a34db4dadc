"""A run of 20 steps that nothing happens to, and others that are killed, stopped or damaged.

The default tests of test_kills.py, test_damage.py and test_faults.py, in one file for the one undisturbed run.
"""

import json
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pytest

from jaxvlm.training.checkpoint_files import whole_steps
from tests.e2e.small_run import HOOK, NAN, RECIPE, checkpoints, finish, halves, losses, scramble


def test_a_run_leaves_a_trace_and_says_where_the_time_went(undisturbed):
    folder, log = undisturbed
    assert f"profile of steps 2 to 3: {folder / 'profile' / 'only'}" in log
    assert list((folder / "profile" / "only").rglob("*.xplane.pb"))
    for what in ("waiting for data", "compiling", "saving", "evaluating"):
        assert f"% {what}" in log.splitlines()[-1]
    beat = json.loads((folder / "heartbeats" / "0.json").read_text())
    assert (beat["phase"], beat["step"], beat["host"]) == ("done", 20, socket.gethostname())
    assert (beat["stage"], beat["steps"]) == ("only", 20)
    assert json.loads((folder / "process.json").read_text())["pid"] == beat["pid"]
    assert json.loads((folder / "exit.json").read_text())["code"] == 0


def test_a_run_killed_in_a_save_resumes_from_the_one_before(undisturbed, start, tmp_path):
    """Its process kills itself while the folder of step 10 still has its temporary name."""
    code = f"""
import glob, signal, threading, time
def kill():
    while not glob.glob("{checkpoints(tmp_path)}/10.orbax-checkpoint-tmp*"):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)
threading.Thread(target=kill, daemon=True).start()
"""
    assert start(tmp_path, code=code).wait()[0] == -9
    assert (tmp_path / "process.json").exists() and not (tmp_path / "exit.json").exists()
    assert halves(tmp_path) and whole_steps(checkpoints(tmp_path)) == [5]
    assert "resumed at step 5 of 20" in finish(start(tmp_path, "--resume"))
    assert losses(tmp_path) == losses(undisturbed[0]) and not halves(tmp_path)


def test_after_ctrl_c_its_checkpoints_are_whole(start, tmp_path):
    waits = tmp_path / "waits"  # not before: a signal that comes within a callback of a library is lost
    code = f"""{HOOK}
def before(step, batch):
    while step == 8 and not os.path.exists("{checkpoints(tmp_path) / "5"}"):
        time.sleep(0.01)
    if step == 8:
        open("{waits}", "w").close()
        time.sleep(300)
hook(before)
"""
    child = start(tmp_path, code=code)
    child.wait_for(waits.exists)
    child.send(signal.SIGINT)
    code, log = child.wait()
    assert code == 130 and "Traceback" not in log
    assert json.loads((tmp_path / "exit.json").read_text())["code"] == 130
    assert whole_steps(checkpoints(tmp_path)) == [5] and not halves(tmp_path)


def test_a_ledger_that_a_killed_run_did_not_write_is_written_later(undisturbed, start, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[0], folder)
    (folder / "ledger.json").write_text('{"only": {"records"')  # by a disk that failed
    (folder / "loss.png").unlink()
    assert "resumed at step 20 of 20" in finish(start(folder, "--resume"))
    assert (folder / "ledger.json").read_text() == (undisturbed[0] / "ledger.json").read_text()
    assert (folder / "loss.png").exists() and losses(folder) == losses(undisturbed[0])


def test_a_damaged_result_is_one_message(undisturbed, start, tmp_path, environment):
    """Weights in place of which there are zeros: only who reads them notices."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[0], folder)
    last = checkpoints(folder) / "20"
    scramble(max((last / "params").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0))
    test = f"--config.evaluation.source={environment['JAXVLM_TEST_TEXT']}"
    code, log = start(folder, "--resume", test).wait()
    assert code == 2 and "Traceback" not in log, log[:6000]
    assert f"error: the checkpoint {last} is damaged (" in log and "move it away to use the one before it" in log


@pytest.mark.nightly  # tests/test_command.py has the message
def test_a_device_that_is_too_small_is_told_with_phase_and_step(start, tmp_path):
    code = f"""{HOOK}
import jax.numpy as jnp
def before(step, batch):
    if step == 7:
        jnp.zeros(2**46, jnp.uint8)
hook(before)
"""
    code, log = start(tmp_path, code=code).wait()
    assert code == 2 and "Traceback" not in log, log[:6000]
    assert "error: a device has too little memory while waiting for data, at step 7 (RESOURCE_EXHAUSTED" in log
    assert whole_steps(checkpoints(tmp_path)) == [5]


@pytest.mark.nightly  # tests/test_inspect_data.py looks at such a batch
def test_losses_that_are_not_finite_stop_a_run(environment, start, tmp_path):
    code, log = start(tmp_path, recipe=RECIPE, code=NAN.replace("STEPS", "range(9, 99)")).wait()
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
