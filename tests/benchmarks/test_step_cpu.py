"""The benchmark runs and prints finite numbers; how large they are is no test's business."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

pytestmark = pytest.mark.torch


@pytest.mark.nightly  # two minutes of compiling; test_lora_step runs most of the same code
def test_prints_finite_numbers():
    command = [sys.executable, "-m", "tests.benchmarks.step_cpu", "--size", "tiny", "--rounds", "1", "--json"]
    # Not the fake devices of conftest.py; and almost all the time goes into compiling, which is quicker without LLVM's
    # optimisations.
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    results = json.loads(last)
    assert [result["batch"] for result in results] == ["full", "mixed"]
    numbers = [leaf for leaf in jax.tree.leaves(results) if not isinstance(leaf, str)]
    assert len(numbers) > 40
    assert all(math.isfinite(number) and number >= 0 for number in numbers), results
    assert any(line.startswith("tokens a second") for line in table)
    assert any(line.startswith("ratio") for line in table)
