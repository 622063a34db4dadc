"""VQAv2: dialects, groups, the results file of the server, broken files."""

import json

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.vqav2 import VqaV2
from tests.evaluation import layouts

BENCHMARK = VqaV2()


def test_items_and_prompt(tmp_path):
    layouts.vqav2_official(tmp_path)
    items = BENCHMARK.load(tmp_path, "val")
    assert [item.id for item in items] == ["420", "421", "730"]
    assert items[0].images == (str(tmp_path / "val2014" / "COCO_val2014_000000000042.jpg"),)
    assert items[0].truth[:4] == ["tan", "brown", "Brown.", "brown"] and len(items[0].truth) == 10
    assert items[1].groups == {"answer type": "yes/no", "question type": "is it"}
    assert items[0].cluster == items[1].cluster != items[2].cluster
    assert BENCHMARK.prompt(items[0], "llava") == f"<image>\nWhat color is the dog?\n{layouts.SHORT}"


def test_scores_by_dialect_and_group(tmp_path):
    layouts.vqav2_official(tmp_path)
    items = BENCHMARK.load(tmp_path, "val")
    answers = ["Tan.", "Yes.", "2"]
    scores = {}
    for dialect in BENCHMARK.dialects:
        values = [BENCHMARK.parse(item, text, dialect) for item, text in zip(items, answers, strict=True)]
        scores[dialect] = BENCHMARK.score(items, values, dialect)
    # All ten said "yes", so the official code compares "Yes." as it is.
    assert scores["official"].credits.tolist() == pytest.approx([0.3, 0, 1])
    assert scores["llava"].credits.tolist() == scores["lmms_eval"].credits.tolist() == pytest.approx([0.3, 1, 1])
    assert scores["llava"].numbers == {"accuracy": pytest.approx(230 / 3)}
    assert scores["llava"].groups["answer type"] == pytest.approx({"number": 100, "other": 30, "yes/no": 100})
    assert scores["llava"].counts["question type"] == {"how many": 1, "is it": 1, "what color is the": 1}


def test_the_results_file_of_test_dev_has_every_question_of_test(tmp_path):
    layouts.vqav2_test(tmp_path)
    items = BENCHMARK.load(tmp_path, "test-dev")
    assert [item.question for item in items] == ["What color is the dog?", "Is it well-lit?"]
    texts = ["The Brown.", "Yes, it is"]
    values = [BENCHMARK.parse(item, text, "llava") for item, text in zip(items, texts, strict=True)]
    scores = BENCHMARK.score(items, values, "llava")
    assert scores.numbers == {} and all(credit != credit for credit in scores.credits)
    files = BENCHMARK.submission(items, texts, values)
    assert json.loads(files["vqav2_results.json"]) == [
        {"question_id": 420, "answer": "brown"},
        {"question_id": 421, "answer": "yes it is"},
        {"question_id": 730, "answer": ""},
    ]
    assert BENCHMARK.parse(items[0], "The Brown.", "official") == "brown"


def test_val_needs_no_server(tmp_path):
    layouts.vqav2_official(tmp_path)
    items = BENCHMARK.load(tmp_path, "val")
    assert BENCHMARK.submission(items, [""] * 3, [""] * 3) == {}


def test_questions_without_annotation_are_named(tmp_path):
    layouts.vqav2_official(tmp_path)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    layouts.put_json(path, {"annotations": layouts.VQAV2_ANSWERS[:1]})
    with pytest.raises(UserError, match=r"\[1\]: question 421 has no annotation in .*\[2\]: question 730 has no"):
        BENCHMARK.load(tmp_path, "val")


def test_val_without_answers_is_named(tmp_path):
    layouts.vqav2_official(tmp_path)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    layouts.put_json(path, {"annotations": [answer | {"answers": []} for answer in layouts.VQAV2_ANSWERS]})
    with pytest.raises(UserError, match=r'\[0\]: "answers" is missing or empty; .*\[1\]'):
        BENCHMARK.load(tmp_path, "val")
