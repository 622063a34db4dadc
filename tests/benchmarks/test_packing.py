"""The benchmark runs, and says of few samples what does not depend on the machine."""

import json
import math

import jax
import pytest

from tests.benchmarks import packing


@pytest.mark.nightly
def test_prints_finite_numbers(capsys):
    packing.main(["--samples", "500", "--rounds", "1", "--json"])
    *table, last = capsys.readouterr().out.splitlines()
    results = json.loads(last)
    numbers = jax.tree.leaves(results)
    assert len(numbers) > 200 and all(math.isfinite(number) and number > 0 for number in numbers), results
    for result in results:
        assert max(result["fill"].values()) <= result["bound"] <= 1.001
        assert max(result["slots"], result["fill"]["ours"]) <= 1
        assert result["samples_per_row"] * result["rows_for_llava_batch"] == pytest.approx(128)
    assert any(line.startswith("all  ") for line in table)
    assert any("first fit" in line for line in table)
