"""One run on several real processes: the same losses, and other numbers of them after a stop."""

import json
import shutil

import numpy as np
import pytest

from jaxvlm.training.metrics import read_metrics
from tests.e2e.small_run import HOOK, arguments, finish_all


def losses(folder):
    lines = [m for m in read_metrics(folder / "metrics.jsonl") if "loss" in m]
    assert [m["step"] for m in lines] == list(range(1, len(lines) + 1))
    return np.array([m["loss"] for m in lines])


def run_alone(start_processes, folder, devices):
    """Losses of one process with so many devices."""
    finish_all(start_processes(*arguments(folder), count=1, devices=devices))
    return losses(folder)


@pytest.fixture(scope="module")
def alone(start_processes, tmp_path_factory):
    return run_alone(start_processes, tmp_path_factory.mktemp("alone"), 4)


@pytest.fixture(scope="module")
def together(start_processes, environment, tmp_path_factory):
    """A run of two processes with two devices each, which also answer the test together: its folder and logs."""
    folder = tmp_path_factory.mktemp("together")
    more = [f"--config.evaluation.source={environment['JAXVLM_TEST_DATA']}", "--config.evaluation.batch_size=96"]
    more += ["--config.evaluation.max_new_tokens=1", "--config.stage.only.keep_checkpoints=3"]
    more += ["--config.stage.only.eval_every=20"]
    return folder, finish_all(start_processes(*arguments(folder, *more), count=2, devices=2)), more


def assert_as_alone(folder, logs, want):
    ours = losses(folder)
    print("largest difference", np.abs(ours - want).max())
    np.testing.assert_allclose(ours, want, rtol=1e-6)
    assert "of the time:" in logs[0] and "of the time:" not in logs[1]
    names = [path.name for path in (folder / "heartbeats").iterdir()]
    assert sorted(names) == [f"{i}.json" for i in range(len(logs))]
    beat = json.loads((folder / "heartbeats" / "1.json").read_text())
    assert beat["phase"] == "done" and beat["process"] == 1


def test_losses_are_those_of_one_process(together, alone):
    """2 x 2 devices against 4 of one process."""
    folder, logs, _ = together
    assert_as_alone(folder, logs, alone)
    assert (folder / "evaluation.json").exists()


@pytest.mark.nightly
def test_losses_of_four_are_those_of_one_process(start_processes, tmp_path):
    """4 x 2 devices against 8."""
    logs = finish_all(start_processes(*arguments(tmp_path / "four"), count=4, devices=2))
    assert_as_alone(tmp_path / "four", logs, run_alone(start_processes, tmp_path / "alone", 8))


def test_a_run_goes_on_with_other_processes_and_devices(start_processes, alone, tmp_path):
    """Ten steps by two processes, told to stop; five more by one with two devices; the rest by one with four."""
    slow = f"{HOOK}hook(lambda step, batch: time.sleep(0.3))"
    running = start_processes(*arguments(tmp_path, "--resume-or-start"), count=2, devices=2, code=slow)
    running.wait_for(lambda: len(read_metrics(tmp_path / "metrics.jsonl")) >= 7)
    running.children[1].terminate()  # one of them is told, both stop
    codes, logs = running.wait()
    assert codes == [75, 75], logs
    stopped = len(losses(tmp_path))
    assert 7 <= stopped < 20
    logs = finish_all(start_processes(*arguments(tmp_path, "--resume-or-start"), count=1, devices=2))
    assert f"resumed at step {stopped} of 20" in logs[0]
    np.testing.assert_allclose(losses(tmp_path), alone, rtol=1e-5)
    assert len(losses(tmp_path)) == 20


def test_a_checkpoint_that_one_of_them_cannot_read_is_set_aside(start_processes, together, alone, tmp_path):
    """Zeros in what only process 1 reads of step 15: both go on from step 10, and neither waits for the other."""
    whole, _, more = together
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    folder = run / "checkpoints" / "only"
    shutil.rmtree(folder / "20")
    for path in (folder / "15" / "params" / "ocdbt.process_1").rglob("*"):
        if path.is_file() and path.stat().st_size > 5000:
            path.write_bytes(bytes(path.stat().st_size))
    logs = finish_all(start_processes(*arguments(run, *more, "--resume"), count=2, devices=2))
    assert f"WARNING: the checkpoint {folder / '15'} is damaged" in logs[0] and "resumed at step 10 of 20" in logs[0]
    np.testing.assert_allclose(losses(run), alone, rtol=1e-6)
