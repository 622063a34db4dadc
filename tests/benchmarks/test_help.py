"""Every benchmark can be imported, and says how it is called; the nightly tests run the long ones."""

import importlib
from pathlib import Path

import pytest

FILES = [path for path in Path(__file__).parent.glob("[!t_]*.py") if "def main(" in path.read_text(encoding="utf-8")]


@pytest.mark.torch  # which step_cpu.py imports
@pytest.mark.parametrize("name", sorted(path.stem for path in FILES))
def test_it_says_how_it_is_called(name, capsys):
    benchmark = importlib.import_module(f"tests.benchmarks.{name}")
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--help"])
    assert end.value.code == 0 and benchmark.__doc__.splitlines()[0] in capsys.readouterr().out
