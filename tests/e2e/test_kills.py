"""Runs that are killed, preempted or stopped by Ctrl-C lose nothing."""

import json
import signal
import time

import numpy as np
import pytest

from jaxvlm.training.checkpoint_files import whole_steps
from tests.e2e.small_run import HOOK, checkpoints, finish, halves, last_step, losses


@pytest.mark.parametrize(
    ("kills", "steps", "saves"), [(6, 100, 1), pytest.param(20, 300, 5, marks=pytest.mark.nightly)]
)
def test_kills_lose_nothing(start, tmp_path, kills, steps, saves):
    """SIGKILL at random moments: of the start, of steps and, most often, of a save."""
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
    assert sum(half for *_, half in moments) >= saves and kills < newest < steps
    log = finish(start(killed, *arguments, str(steps)))
    assert f"resumed at step {newest} of {steps}" in log
    assert len(losses(killed)) == steps and losses(killed) == losses(straight)
    assert not halves(killed)


@pytest.mark.nightly  # test_small.py without the kill
def test_a_run_killed_between_its_last_save_and_its_ledger_writes_it_later(undisturbed, start, tmp_path):
    folder = tmp_path / "run"
    code = """
import json
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


@pytest.mark.nightly  # test_processes.py tells one of two processes
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
    assert json.loads((tmp_path / "exit.json").read_text())["code"] == 75
    assert "heldout_loss" not in log  # there is no time for an evaluation
    stopped = len(losses(tmp_path))
    assert stopped == 7 and max(whole_steps(checkpoints(tmp_path))) == stopped
    log = finish(start(tmp_path, "--resume-or-start"))
    assert f"resumed at step {stopped} of 20" in log
    assert losses(tmp_path) == losses(undisturbed[0])


@pytest.mark.nightly  # tests/training/test_faults.py has the signal in a last step
def test_told_to_stop_in_the_last_step_it_does_not_begin_the_test(start, tmp_path, environment):
    code = f"{HOOK}\nimport os, signal\n"
    code += "hook(lambda step, batch: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None)\n"
    test = f"--config.evaluation.source={environment['JAXVLM_TEST_TEXT']}"
    code, log = start(tmp_path, "--config.steps=2", test, code=code).wait()
    assert code == 75, log[-3000:]
    assert (tmp_path / "ledger.json").exists() and not (tmp_path / "evaluation.json").exists()
