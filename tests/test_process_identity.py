import os
import subprocess
import sys

import pytest

from jaxvlm import process_identity
from jaxvlm.process_identity import identity, is_alive, is_elsewhere


def test_a_process_is_itself_alone():
    own = identity(os.getpid())
    assert is_alive(own) and not is_elsewhere(own)
    assert not is_alive(own | {"start_ticks": "1"}), "a process id that was used again"
    assert not is_alive(own | {"boot_id": "another"})
    other_host = own | {"host": "elsewhere"}
    assert is_elsewhere(other_host) and not is_alive(other_host)
    assert not is_alive({}) and not is_alive(own | {"pid": -1})


def test_an_ended_process_is_not_alive_not_even_before_it_is_reaped():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    recorded = identity(child.pid)
    assert is_alive(recorded)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert not is_alive(recorded)
    child.wait()
    assert not is_alive(recorded)
    with pytest.raises(ProcessLookupError):
        identity(child.pid)


def test_without_proc_ps_tells(monkeypatch, tmp_path):
    monkeypatch.setattr(process_identity, "_PROC", tmp_path)
    own = identity(os.getpid())
    assert own["start_ticks"] and own["boot_id"] == "" and is_alive(own)
    assert not is_alive(own | {"pid": 2**22 + 7})
