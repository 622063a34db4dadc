"""What processes agree on: settings, data, who is there, who may use a workdir."""

import pytest

from tests.e2e.small_run import arguments


def test_other_settings_of_a_process_are_named(start_processes, tmp_path):
    running = start_processes(*arguments(tmp_path), count=2, devices=2, each=[(), ("--config.seed=7",)])
    codes, logs = running.wait()
    assert codes == [2, 2]
    for log in logs:
        assert "config.seed is 42 on process 0 and 7 on process 1" in log, log
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.nightly  # above of settings
def test_other_data_of_a_process_is_named(start_processes, tmp_path):
    """As where a host's copy of the data is another one."""
    code = "import dataclasses\nindex = jaxvlm.stages.index_rows\ndef other(samples, **k):\n"
    code += "    share = 0.1 + 0.2 * k['process'][0]\n"
    code += "    samples.config = dataclasses.replace(samples.config, heldout=share)\n"
    code += "    return index(samples, **k)\njaxvlm.stages.index_rows = other"
    codes, logs = start_processes(*arguments(tmp_path), count=2, devices=2, code=code).wait()
    assert codes == [2, 2] and "the data of stage only is '" in logs[0] and "on process 1" in logs[0]


JOIN = """
import argparse
from jaxvlm import processes
from jaxvlm.command import add_process_flags, run
processes._JOIN_SECONDS = 2
parser = argparse.ArgumentParser()
add_process_flags(parser)
if os.environ.get("JAXVLM_PROCESS_ID") != os.environ.get("ABSENT", "none"):
    sys.exit(run(lambda argv: processes.connect(parser.parse_args(argv)), sys.argv[1:]))
sys.exit()
"""


@pytest.mark.parametrize("own", [pytest.param(0, marks=pytest.mark.nightly), 1])
def test_one_that_is_left_alone_says_so(start_processes, own):
    codes, logs = start_processes(count=2, devices=1, code=JOIN, ABSENT=str(1 - own)).wait()
    assert codes[own] == 1  # which is started again
    assert f"error: process {own} of 2: the others were not all there within 2 seconds" in logs[own]


def test_without_a_cluster_auto_is_a_mistake(server):
    code, log = server.fork("--distributed", "auto", code=JOIN).wait()
    assert code == 2 and log.startswith("error: --distributed auto finds no cluster here")


@pytest.mark.nightly  # tests/training/test_faults.py has the lock
def test_a_second_run_is_refused(start_processes, tmp_path):
    running = start_processes(*arguments(tmp_path, "--config.steps=5000"), count=1, devices=1)
    running.wait_for(lambda: (tmp_path / "checkpoints").exists())
    codes, logs = start_processes(*arguments(tmp_path, "--resume", "--config.steps=5000"), count=1, devices=1).wait()
    assert codes == [2] and "is in use by another run" in logs[0] and str(running.children[0].pid) in logs[0]
    running.children[0].kill()
    running.wait()
    again = start_processes(*arguments(tmp_path, "--resume", "--config.steps=5000"), count=1, devices=1)
    again.wait_for(lambda: "resumed at step" in again.children[0].read_log() or "only:" in again.children[0].read_log())
    again.children[0].terminate()
    assert again.wait()[0] == [75]
