"""VizWiz: prompts, groups, the results file of the server."""

import json

import pytest

from jaxvlm.evaluation.benchmarks.vizwiz import VizWiz
from tests.evaluation import layouts

BENCHMARK = VizWiz()
SENTENCES = f"When the provided information is insufficient, respond with 'Unanswerable'.\n{layouts.SHORT}"


def test_val(tmp_path):
    layouts.vizwiz_official(tmp_path)
    items = BENCHMARK.load(tmp_path, "val")
    assert items[1].id == "VizWiz_val_00000001"
    assert BENCHMARK.prompt(items[1], "llava") == f"<image>\nis it red\n{SENTENCES}"
    assert BENCHMARK.prompt(items[1], "lmms_eval") == f"<image>\nIs it red\n{SENTENCES}"
    values = [BENCHMARK.parse(item, "Unanswerable", "llava") for item in items]
    scores = BENCHMARK.score(items, values, "llava")
    assert scores.numbers == {"accuracy": pytest.approx(100 / 3)}
    assert scores.groups == {"answer type": {"other": 0, "unanswerable": 100, "yes/no": 0}}
    assert BENCHMARK.submission(items, [""] * 3, values) == {}


def test_the_results_file(tmp_path):
    layouts.vizwiz_test(tmp_path)
    items = BENCHMARK.load(tmp_path, "test")
    assert items[0].question == "What?" and BENCHMARK.prompt(items[0], "llava") == f"<image>\nWhat?\n{SENTENCES}"
    values = [BENCHMARK.parse(item, "The red, one.", "llava") for item in items]
    assert BENCHMARK.score(items, values, "llava").numbers == {}
    assert json.loads(BENCHMARK.submission(items, [""] * 2, values)["vizwiz_results.json"]) == [
        {"image": "VizWiz_test_0.jpg", "answer": "red 1"},
        {"image": "VizWiz_test_1.jpg", "answer": "red 1"},
    ]
