"""The benchmark runs and prints finite numbers; of their sizes only those are looked at that no machine changes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax


def test_prints_finite_numbers():
    command = [sys.executable, "-m", "tests.benchmarks.lora_step", "--model", "tiny", "--rounds", "1", "--json"]
    # As in test_step_cpu.py: not the fake devices of conftest.py, and quick to compile.
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    result = json.loads(last)
    numbers = [leaf for leaf in jax.tree.leaves(result) if not isinstance(leaf, str)]
    assert len(numbers) > 25
    assert all(math.isfinite(number) and number >= 0 for number in numbers), result
    for kinds in result["state_bytes"].values():
        assert 2 * kinds["trained"] <= kinds["moments"] < 2 * kinds["trained"] + 100  # and a few counters
    assert result["state_bytes"]["lora"]["frozen"] > result["state_bytes"]["full"]["frozen"]
    assert any(line.startswith("step, ms") for line in table)
    assert any(line.startswith("ratio") for line in table)
