"""One run on several real processes: the same losses, and other numbers of them after a stop.

The data has twenty images that break only while training, which each process meets in its own rows.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxvlm.data.sources.load import id_hash
from jaxvlm.training.checkpoint_files import whole_steps
from jaxvlm.training.metrics import read_metrics
from tests.e2e.small_run import HOOK, RECIPE, arguments, checkpoints, finish_all

STEPS, TOLD = 6, 3


def losses(folder):
    lines = [m for m in read_metrics(folder / "metrics.jsonl") if "loss" in m]
    assert [m["step"] for m in lines] == list(range(1, len(lines) + 1))
    return np.array([m["loss"] for m in lines])


@pytest.fixture(scope="module")
def short(environment, tmp_path_factory):
    """Overrides of all runs: few steps, and the data with images that break."""
    data = tmp_path_factory.mktemp("broken") / "data"
    shutil.copytree(Path(environment["JAXVLM_TEST_DATA"]).parent, data)
    for number in range(20, 40):
        picture = data / f"{number}_0.png"
        whole = picture.read_bytes()
        picture.write_bytes(whole[:60] + whole[70:])
    stage = "--config.stage.only"
    more = [f"{stage}.data.source={data / 'data.json'}", f"{stage}.data.on_bad=skip", f"{stage}.checkpoint_every=2"]
    return [*more, f"--config.steps={STEPS}", f"{stage}.keep_checkpoints=9", f"{stage}.eval_every=0"]


def run_alone(start_processes, folder, devices, short):
    """Losses of one process with so many devices, and the ledger."""
    finish_all(start_processes(*arguments(folder, *short, recipe=RECIPE), count=1, devices=devices))
    return losses(folder), ledger(folder)


def ledger(folder):
    return json.loads((folder / "ledger.json").read_text())["only"]


@pytest.fixture(scope="module")
def alone(start_processes, short, tmp_path_factory):
    return run_alone(start_processes, tmp_path_factory.mktemp("alone"), 4, short)


@pytest.fixture(scope="module")
def stopped(start_processes, short, tmp_path_factory):
    """A run of two processes with two devices each, of which one is told to stop in step 3: its folder and last step.

    They agree on a step at which both save: that one or the next.
    """
    folder = tmp_path_factory.mktemp("stopped")
    told = f"{HOOK}import signal\nfrom jaxvlm import processes\n"
    told += f"hook(lambda step, batch: os.kill(os.getpid(), signal.SIGTERM) if step == {TOLD} and "
    told += "processes.index() == 1 else None)"
    codes, logs = start_processes(*arguments(folder, *short, recipe=RECIPE), count=2, devices=2, code=told).wait()
    assert codes == [75, 75], logs
    assert "preempted: --resume" in logs[0]
    assert any("this record is not trained on" in log for log in logs), logs
    last = len(losses(folder))
    assert TOLD <= last < STEPS and whole_steps(checkpoints(folder))[-1] == last
    return folder, last


def assert_as_alone(folder, logs, want):
    ours = losses(folder)
    print("largest difference", np.abs(ours - want).max())
    np.testing.assert_allclose(ours, want, rtol=1e-6)
    assert "of the time:" in logs[0] and "of the time:" not in logs[1]
    names = [path.name for path in (folder / "heartbeats").iterdir()]
    assert sorted(names) == [f"{i}.json" for i in range(len(logs))]
    beat = json.loads((folder / "heartbeats" / "1.json").read_text())
    assert beat["phase"] == "done" and beat["process"] == 1


def test_a_run_goes_on_with_other_processes_and_devices(start_processes, stopped, short, alone, tmp_path):
    """The first steps by two processes, the rest by one with two devices; and what each counted is in one ledger."""
    run, (folder, last) = tmp_path / "run", stopped
    shutil.copytree(folder, run)
    logs = finish_all(start_processes(*arguments(run, *short, "--resume-or-start", recipe=RECIPE), count=1, devices=2))
    assert f"resumed at step {last} of {STEPS}" in logs[0]
    np.testing.assert_allclose(losses(run), alone[0], rtol=1e-5)
    assert len(losses(run)) == STEPS
    assert ledger(run) == alone[1] and ledger(run)["read"] == 90
    broken = ledger(run)["rejected"]
    heldout = sum(20 <= number < 40 for number in range(90) if id_hash(str(number)) < 0.1 * 2.0**64)
    assert 0 < broken["total"] <= 20 - heldout
    assert broken["reasons"] == {"image_broken, found while training": broken["total"]}


@pytest.mark.nightly  # tests/training/test_faults.py has one process
def test_a_checkpoint_that_one_of_them_cannot_read_is_set_aside(
    start_processes, environment, stopped, short, alone, tmp_path
):
    """Zeros in what only process 1 reads of the last step: both go on from the save before, and neither waits.

    Their losses are those of one process with as many devices, and they answer the test together.
    """
    run = tmp_path / "run"
    shutil.copytree(stopped[0], run)
    folder = checkpoints(run)
    *_, before, last = whole_steps(folder)
    for path in (folder / str(last) / "params" / "ocdbt.process_1").rglob("*"):
        if path.is_file() and path.stat().st_size > 5000:
            path.write_bytes(bytes(path.stat().st_size))
    test = [f"--config.evaluation.source={environment['JAXVLM_TEST_DATA']}", "--config.evaluation.batch_size=96"]
    test += ["--config.evaluation.max_new_tokens=1", f"--config.stage.only.eval_every={STEPS}", "--resume"]
    logs = finish_all(start_processes(*arguments(run, *short, *test, recipe=RECIPE), count=2, devices=2))
    assert f"WARNING: the checkpoint {folder / str(last)} is damaged" in logs[0]
    assert f"resumed at step {before} of {STEPS}" in logs[0]
    assert_as_alone(run, logs, alone[0])
    assert (run / "evaluation.json").exists() and "heldout_loss" in logs[0] and ledger(run) == alone[1]


@pytest.mark.nightly  # two processes are above
def test_losses_of_four_are_those_of_one_process(start_processes, short, tmp_path):
    """4 x 2 devices against 8."""
    logs = finish_all(start_processes(*arguments(tmp_path / "four", *short, recipe=RECIPE), count=4, devices=2))
    assert_as_alone(tmp_path / "four", logs, run_alone(start_processes, tmp_path / "alone", 8, short)[0])
