"""The benchmarks of serving run and print finite numbers; no size of them is looked at."""

import json
import math

import jax
import pytest

from tests.benchmarks import serve, serve_prefix

pytestmark = pytest.mark.nightly


def finite(capsys):
    """The result that was printed last."""
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    numbers = [leaf for leaf in jax.tree.leaves(result) if not isinstance(leaf, str)]
    assert len(numbers) > 10 and all(math.isfinite(number) and number >= 0 for number in numbers), result
    return result


@pytest.mark.usefixtures("one_device")
@pytest.mark.torch
def test_serve(capsys):
    flags = ["--clients=1,3", "--requests=2", "--tokens=3-8", "--rounds=1", "--slots=2", "--json"]
    serve.main(["--model=tiny", *flags])
    assert not finite(capsys)["compilations"]


@pytest.mark.usefixtures("one_device")
def test_serve_prefix(capsys):
    serve_prefix.main(["--model=tiny", "--questions=4", "--rounds=1", "--json"])
    finite(capsys)
