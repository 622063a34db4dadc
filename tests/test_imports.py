"""What must stay light: `--help` of the commands, recipes, and the processes that load data."""

import subprocess
import sys

import pytest

from jaxvlm.__main__ import COMMANDS

HEAVY = ("jax", "flax", "orbax", "transformers", "matplotlib", "tensorstore", "torch")


def imported(code: str, names: tuple[str, ...]) -> list[str]:
    """Those of the packages that a fresh process has imported after `code`."""
    code = f"{code}\nimport sys\nprint('imported', *(name for name in {names} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_does_not_wait_for_jax(name):
    """Parse first: what does the work is imported in `main`, after the arguments are parsed."""
    code = (
        f"import contextlib, jaxvlm.{name} as command\n"
        "with contextlib.suppress(SystemExit):\n    command.main(['--help'])"
    )
    assert imported(code, HEAVY) == []


@pytest.mark.parametrize(
    "name", ["jaxvlm.__main__", "jaxvlm.command", "jaxvlm.config", "configs.base", "configs.qwen_vl"]
)
def test_recipes_are_read_without_jax(name):
    assert imported(f"import {name}", HEAVY) == []


def test_data_knows_no_jax():
    """Data workers are processes, and each would pay for JAX; `Batch` is the only contract between data and models."""
    code = (
        "import importlib, pkgutil, jaxvlm.data as data\n"
        "for found in pkgutil.walk_packages(data.__path__, 'jaxvlm.data.'):\n    importlib.import_module(found.name)"
    )
    assert imported(code, ("jax", "flax", "jaxvlm.models", "jaxvlm.training")) == []
