"""The benchmark runs and prints finite numbers; how large they are is no test's business."""

import json
import math

import jax
import pytest

from tests.benchmarks import import_weights


@pytest.mark.nightly
def test_prints_finite_numbers(capsys):
    import_weights.main(["--gib", "0", "--rounds", "2", "--json"])
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["files"] == 4
    numbers = jax.tree.leaves(result)
    assert len(numbers) > 12 and all(math.isfinite(number) for number in numbers), result
    assert any(line.startswith("ratio") for line in table)
    assert any(line.startswith("peak memory") for line in table)
