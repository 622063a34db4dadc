"""The benchmark runs and prints finite numbers; how large they are is no test's business."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax


def test_prints_finite_numbers():
    command = [sys.executable, "-m", "tests.benchmarks.data", "--rounds", "1", "--json"]
    command += ["--images", "2", "--conversations", "3", "--vocab", "2000"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    numbers = jax.tree.leaves(result)
    assert len(numbers) > 50
    assert all(math.isfinite(number) and number > 0 for number in numbers), result
    assert sum(line.lstrip().startswith("ours") for line in table) == 4
    assert any(line.startswith("headers") for line in table)
