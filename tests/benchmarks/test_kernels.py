"""The benchmark runs, and counts cycles as the compiler does: a smaller block takes more of them for the same work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.nightly
@pytest.mark.tpu_compiler
def test_counts_what_is_scheduled():
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.kernels",
        "--positions",
        "512",
        "--blocks",
        "128",
        "512",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    small, large = json.loads(last)
    assert [small["block"], large["block"]] == [128, 512] and any("512 x 512" in line for line in table)
    for result in (small, large):
        assert set(result["cycles"]) == {"fwd", "dq", "dkv"}
        assert all(0 < share < 1 for share in result["share_of_peak"].values())
    assert large["cycles_of_a_step"] < small["cycles_of_a_step"]
