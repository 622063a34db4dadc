"""The parity tests once more in a process whose XLA optimises as it does for a run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.xla import LEVEL

pytestmark = pytest.mark.torch


@pytest.mark.nightly  # test_llava.py compiles one model so
def test_parity_holds_as_a_run_is_optimised():
    flags = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if flag not in LEVEL.split())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/parity/test_llava.py"],
        env=os.environ | {"JAXVLM_TEST_XLA": "3", "XLA_FLAGS": flags},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
