"""Answers with what the published scorers gave for them; make_scoring_cases.py made them."""

import json
from pathlib import Path

DATA = Path(__file__).parent / "data"


def cases(name):
    """The rows of a file without its first, which has the versions."""
    first, *rows = map(json.loads, (DATA / f"{name}.jsonl").read_text(encoding="utf-8").split("\n")[:-1])
    assert first["made_by"]
    return rows
