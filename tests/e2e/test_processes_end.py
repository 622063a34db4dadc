"""Several processes end together: one is killed, fails at the start or in a step."""

import pytest

from jaxvlm.training.metrics import read_metrics
from tests.e2e.small_run import HOOK, arguments

SOONER = "jaxvlm.processes.LOST_SECONDS = 8\n"  # a killed process 1 is missed only for its silence


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_a_killed_process_ends_the_others(start_processes, tmp_path, victim):
    """While both read their data."""
    waits = "import time\nfrom jaxvlm import processes\ndef index(*a, **k):\n"
    waits += f"    open(f'{tmp_path}/waits-{{processes.index()}}', 'w').close()\n    time.sleep(300)\n"
    waits += "jaxvlm.stages.index_rows = index"
    running = start_processes(*arguments(tmp_path / "run"), count=2, devices=2, code=SOONER + waits)
    running.wait_for(lambda: len(list(tmp_path.glob("waits-*"))) == 2)
    running.children[victim].kill()
    codes, logs = running.wait()
    assert codes[victim] == -9 and codes[1 - victim] == 1
    assert f"process {victim} is gone" in logs[1 - victim] and "--resume-or-start" in logs[1 - victim]


@pytest.mark.nightly  # above before the steps
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_in_a_step_ends_the_others(start_processes, tmp_path, victim):
    running = start_processes(*arguments(tmp_path, "--config.steps=5000"), count=2, devices=2, code=SOONER)
    running.wait_for(lambda: len(read_metrics(tmp_path / "metrics.jsonl")) >= 7)
    running.children[victim].kill()
    codes, logs = running.wait()
    assert codes[victim] == -9 and codes[1 - victim] == 1
    assert f"process {victim} is gone" in logs[1 - victim] and "--resume-or-start" in logs[1 - victim]


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("raise UserError('no such image')", "no such image"),
        pytest.param("jax.numpy.zeros(2**46, 'uint8')", "a device has too little memory", marks=pytest.mark.nightly),
    ],
)
def test_a_failure_of_one_is_told_by_all(start_processes, tmp_path, failure, said):
    fails = "import jax\nfrom jaxvlm.errors import UserError\n"
    fails += "index = jaxvlm.stages.index_rows\ndef failing(*a, **k):\n"
    fails += f"    if k['process'][0] == 1: {failure}\n"
    fails += "    return index(*a, **k)\njaxvlm.stages.index_rows = failing"
    codes, logs = start_processes(*arguments(tmp_path), count=2, devices=2, code=fails).wait()
    assert codes == [2, 2] and f"process 1 stopped: {said}" in logs[0]


@pytest.mark.nightly  # the failure before the steps is above
def test_a_failure_of_one_in_a_step_is_told_by_all(start_processes, tmp_path):
    """The other waits in the step that the one that fails does not reach."""
    fails = f"{HOOK}from jaxvlm import processes\nfrom jaxvlm.errors import UserError\n"
    fails += "def before(step, batch):\n    if processes.index() == 1 and step == 1:\n"
    fails += "        raise UserError('no such image')\nhook(before)"
    codes, logs = start_processes(*arguments(tmp_path), count=2, devices=2, code=fails).wait()
    assert codes == [2, 2] and "process 1 stopped: no such image" in logs[0]
