"""Damaged checkpoints and full disks: what a run does and says; test_small.py has more."""

import re
import shutil
from pathlib import Path

import pytest

from jaxvlm.training.checkpoint_files import whole_steps
from tests.e2e.small_run import HOOK, checkpoints, finish, halves, losses, scramble, truncate


@pytest.mark.nightly  # tests/training/test_faults.py restores the newest whole one
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


@pytest.mark.nightly  # tests/training/test_faults.py has the save that fails
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


@pytest.mark.nightly  # tests/training/test_faults.py has the stream
def test_a_log_on_a_full_disk_does_not_stop_a_run(undisturbed, start, tmp_path, environment):
    """Neither the curves on standard error nor the table of the test on standard output."""
    test = [f"--config.evaluation.source={environment['JAXVLM_TEST_TEXT']}", "--config.evaluation.max_new_tokens=1"]
    code, _ = start(tmp_path, *test, log=Path("/dev/full")).wait()
    assert code == 0 and losses(tmp_path) == losses(undisturbed[0])
    assert (tmp_path / "evaluation.json").is_file()
