"""The benchmark runs and prints finite numbers; how large they are is no test's business."""

import json
import math

import jax
import pytest

from tests.benchmarks import data


@pytest.mark.nightly
def test_prints_finite_numbers(capsys):
    data.main(["--rounds", "1", "--json", "--images", "2", "--conversations", "3", "--vocab", "2000"])
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    numbers = jax.tree.leaves(result)
    assert len(numbers) > 50
    assert all(math.isfinite(number) and number > 0 for number in numbers), result
    assert sum(line.lstrip().startswith("ours") for line in table) == 4
    assert any(line.startswith("headers") for line in table)
