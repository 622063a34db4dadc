"""DocVQA and InfographicVQA: dialects, groups, results files, answers that are missing."""

import json

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.docvqa import DocVqa
from jaxvlm.evaluation.benchmarks.infovqa import InfoVqa
from tests.evaluation import layouts


def test_dialects_and_groups(tmp_path):
    layouts.docvqa_official(tmp_path)
    items = DocVqa().load(tmp_path, "val")
    assert items[0].groups == {"question type": "form, layout"} and items[0].id == "337"
    assert DocVqa().prompt(items[1], "lmms_eval") == f"<image>\nWho signed?\n{layouts.SHORT}"
    answers = ["9x", "p carter", "dollars"]  # half of "93" is right, 8 of 9 characters, and nothing
    for dialect, first in [("lmms_eval", 0.5), ("vlmevalkit", 0.5), ("official", 0)]:
        values = [DocVqa().parse(item, text, dialect) for item, text in zip(items, answers, strict=True)]
        scores = DocVqa().score(items, values, dialect)
        assert scores.credits.tolist() == pytest.approx([first, 8 / 9, 0])
        assert scores.numbers == {"anls": pytest.approx((first + 8 / 9) / 0.03)}


def test_the_results_file_of_test(tmp_path):
    layouts.docvqa_official(tmp_path)
    items = DocVqa().load(tmp_path, "test")
    assert items[0].truth is None and DocVqa().score(items, ["a"] * 3, "official").numbers == {}
    files = DocVqa().submission(items, ["a", "b", "c"], ["a", "b", "c"])
    assert json.loads(files["docvqa_results.json"])[2] == {"questionId": 339, "answer": "c"}


def test_val_without_answers(tmp_path):
    layouts.docvqa_official(tmp_path)
    (tmp_path / "test_v1.0.json").rename(tmp_path / "val_v1.0_withQT.json")
    with pytest.raises(UserError, match=r'json\[0\]: "answers" is empty; .*json\[1\]'):
        DocVqa().load(tmp_path, "val")


def test_infographics(tmp_path):
    layouts.infovqa_official(tmp_path)
    items = InfoVqa().load(tmp_path, "val")
    assert items[2].images == (str(tmp_path / "infographicsvqa_images" / "2.jpeg"),)
    assert items[2].groups == {"answer type": "single span", "operation": "counting"}
    assert items[0].cluster == items[1].cluster != items[2].cluster
