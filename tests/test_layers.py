"""What no file may do, told from its text: test for a family, or import from a layer above its own."""

import re
from pathlib import Path

import pytest

import jaxvlm
from tests.conftest import NEEDS_TORCH

ROOT = Path(jaxvlm.__file__).parent
FILES = {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.rglob("*.py"))}
FAMILY_TEST = re.compile(
    r"\b(family|model_type)\b['\"\])]*\s*(==|!=)|\bkind\s*(==|!=)\s*['\"](llava|vision|language|clip|siglip|gguf)"
)


def test_a_family_is_tested_for_nowhere():
    found = [
        f"{name}: {line.strip()}"
        for name, text in FILES.items()
        for line in text.splitlines()
        if not name.startswith("families/") and FAMILY_TEST.search(line)
    ]
    assert not found


@pytest.mark.parametrize(
    "line", ['if c.family == "clip":', 'if values["model_type"] != "llava":', 'if kind == "vision":']
)
def test_such_a_line_is_found(line):
    assert FAMILY_TEST.search(line)


@pytest.mark.parametrize(
    ("package", "above"),
    [
        ("models", "weights|families|data|training|inference|planning"),
        ("weights", "families|data|training|inference|planning|run|conversion"),
        ("families", "training|inference|planning|run|conversion"),
    ],
)
def test_the_order_of_imports(package, above):
    """models, then weights (the engine and the codecs of parts), then families."""
    pattern = re.compile(rf"^\s*(from|import) jaxvlm\.({above})\b", re.MULTILINE)
    assert [name for name, text in FILES.items() if name.startswith(f"{package}/") and pattern.search(text)] == []


# What imports torch at its top, itself or through a helper.
TORCH = re.compile(
    r"^(import (torch|peft)\b|from tests(\.parity|\.families\.qwen_vl)? import .*\b(pairs|hf_folders)\b"
    r"|from tests\.test_convert import)",
    re.MULTILINE,
)


def test_files_that_need_torch_say_so():
    """For `pytest -m "not torch"`."""
    files = {path: path.read_text() for path in Path(__file__).parent.rglob("test_*.py")}
    needs = {path.name for path, text in files.items() if TORCH.search(text)}
    in_processes = {"test_as_optimised.py", "test_step_cpu.py"}
    assert needs | in_processes == {path.name for path, text in files.items() if NEEDS_TORCH.search(text)}
