import json
import os
import subprocess
import sys

import pytest

from jaxvlm.errors import UserError
from jaxvlm.process_identity import is_alive
from jaxvlm.run_process import recorded
from jaxvlm.runs import RunFolder
from jaxvlm.training.preemption import StartAgain


def ended(folder):
    return json.loads(folder.exit_file.read_text())


def test_a_run_names_its_process_while_it_runs(tmp_path):
    folder = RunFolder(tmp_path)
    folder.exit_file.write_text("{}")  # of an earlier process
    with recorded(folder):
        running = json.loads(folder.process_file.read_text())
        assert running["pid"] == os.getpid() and is_alive(running)
        assert running["cwd"] == os.getcwd() and running["command"][0] == sys.executable
        assert not folder.exit_file.exists()
    assert (ended(folder)["code"], ended(folder)["signal"], ended(folder)["message"]) == (0, None, "")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("too large"), 2, "too large"),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt: "),
        (StartAgain(), 75, "preempted"),
        (ZeroDivisionError("by\nzero"), 1, "ZeroDivisionError: by zero"),
        (OSError(28, "No space left on device"), 2, "[Errno 28] No space left on device; free some space"),
    ],
)
def test_it_says_how_it_ended(tmp_path, error, code, message):
    folder = RunFolder(tmp_path)
    with pytest.raises(type(error)), recorded(folder):
        raise error
    assert ended(folder)["code"] == code and ended(folder)["message"].startswith(message)


def test_also_when_it_cannot_wait_for_the_others(tmp_path):
    code = f"""
from jaxvlm import processes, run_process, runs
with run_process.recorded(runs.RunFolder({str(tmp_path)!r})):
    processes.exit_now("process 1 is gone", 1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "process 1 is gone" in done.stderr
    assert ended(RunFolder(tmp_path))["message"] == "process 1 is gone"
