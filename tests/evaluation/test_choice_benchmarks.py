"""What every choice benchmark promises."""

import subprocess
import sys

import pytest

from jaxvlm.evaluation.benchmarks.mmbench import MmBench
from jaxvlm.evaluation.benchmarks.mme import Mme
from jaxvlm.evaluation.benchmarks.mmmu import Mmmu
from jaxvlm.evaluation.benchmarks.own import OwnFile
from jaxvlm.evaluation.benchmarks.pope import Pope
from jaxvlm.evaluation.benchmarks.scienceqa import ScienceQa
from jaxvlm.evaluation.benchmarks.seedbench import SeedBench

BENCHMARKS = [ScienceQa(), Pope(), Mme(), MmBench(), SeedBench(), Mmmu(), OwnFile()]


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_it_describes_itself(benchmark):
    assert benchmark.splits and set(benchmark.max_new_tokens) <= {"", *benchmark.dialects}
    assert "" in benchmark.max_new_tokens or set(benchmark.dialects) <= set(benchmark.max_new_tokens)
    for text in (benchmark.title, benchmark.about, benchmark.files, benchmark.source, benchmark.metric):
        assert text and text == text.strip()
    assert all(number.dialect in benchmark.dialects for number in benchmark.published)
    assert benchmark.score([], [], benchmark.dialects[0]).credits.shape == (0,)


def test_without_jax():
    names = ", ".join(f"jaxvlm.evaluation.benchmarks.{benchmark.name}" for benchmark in BENCHMARKS)
    code = f"import sys, {names}; print([m for m in ('jax', 'torch', 'pyarrow', 'matplotlib') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout == "[]\n"
