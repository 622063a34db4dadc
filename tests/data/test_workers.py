"""Worker processes do not outlive the process that started them, however that ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STARTS_WORKERS = """
import os, time
from jaxvlm.data.workers import worker_pool

if __name__ == "__main__":
    pool = worker_pool(os.getpid)
    print(pool.submit(os.getpid).result(), flush=True)
    time.sleep(600)
"""


def test_workers_of_a_killed_process_end(tmp_path):
    script = tmp_path / "starts_workers.py"
    script.write_text(STARTS_WORKERS)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, 0)  # it is there
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        until = time.monotonic() + 30
        while time.monotonic() < until and _is_alive(worker):
            time.sleep(0.1)
        assert not _is_alive(worker)


def _is_alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
