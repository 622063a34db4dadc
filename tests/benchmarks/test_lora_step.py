"""The benchmark runs and prints finite numbers; of their sizes only those are looked at that no machine changes."""

import json
import math

import jax
import pytest

from tests.benchmarks import lora_step


@pytest.mark.nightly
def test_prints_finite_numbers(capsys):
    lora_step.main(["--model", "tiny", "--rounds", "1", "--json"])
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    numbers = [leaf for leaf in jax.tree.leaves(result) if not isinstance(leaf, str)]
    assert len(numbers) > 25
    assert all(math.isfinite(number) and number >= 0 for number in numbers), result
    for kinds in result["state_bytes"].values():
        assert 2 * kinds["trained"] <= kinds["moments"] < 2 * kinds["trained"] + 100  # and a few counters
    assert result["state_bytes"]["lora"]["frozen"] > result["state_bytes"]["full"]["frozen"]
    assert any(line.startswith("step, ms") for line in table)
    assert any(line.startswith("ratio") for line in table)
