"""The benchmark runs and prints finite numbers; how large they are is no test's business."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax


def test_prints_finite_numbers():
    command = [sys.executable, "-m", "tests.benchmarks.import_weights", "--gib", "0", "--rounds", "2", "--json"]
    environment = os.environ | {"XLA_FLAGS": ""}  # not the fake devices of conftest.py
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    assert result["files"] == 4
    numbers = jax.tree.leaves(result)
    assert len(numbers) > 12 and all(math.isfinite(number) for number in numbers), result
    assert any(line.startswith("ratio") for line in table)
    assert any(line.startswith("peak memory") for line in table)
