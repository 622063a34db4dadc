"""ScienceQA: layouts, words of each tool, accuracy with an image and of all."""

import dataclasses
import json

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.benchmark import LLAVA, LMMS_EVAL, VLMEVALKIT
from jaxvlm.evaluation.benchmarks.scienceqa import ScienceQa
from tests.evaluation.choice_files import (
    assert_resample_equals_score,
    assert_shuffling_changes_nothing,
    base64_jpeg,
    put_tsv,
)
from tests.evaluation.layouts import cell, put_images, put_json, put_parquet

SQA = ScienceQa()
LETTER = "Answer with the option's letter from the given choices directly."
PROBLEMS = {
    "11": {"question": "Which  is red?", "choices": ["rose", "grass"], "answer": 0, "hint": "", "image": "image.png"},
    "4": {"question": "Who wrote?", "choices": ["she", "he", "they"], "answer": 2, "hint": "A letter.", "image": None},
    "7": {"question": "Where?", "choices": ["here", "there"], "answer": 1, "hint": "A map.", "image": "image.png"},
    "9": {"question": "Not of this split", "choices": ["a", "b"], "answer": 1, "hint": "", "image": None},
}
MORE = {"subject": "natural science", "grade": "grade4"}
PROMPTS = {
    "11": "Context: N/A\nQuestion: Which is red?\nOptions: (A) rose (B) grass",
    "4": "Context: A letter.\nQuestion: Who wrote?\nOptions: (A) she (B) he (C) they",
    "7": "Context: A map.\nQuestion: Where?\nOptions: (A) here (B) there",
}


def put_official(folder, **changes):
    problems = {id: row | MORE | changes.get(f"_{id}", {}) for id, row in PROBLEMS.items()}
    put_json(folder / "problems.json", problems, mark=True)
    put_json(folder / "pid_splits.json", {"test": ["11", "4", "7"], "val": ["9"]})
    put_images(folder / "images/test", "11/image.png", "7/image.png")


def put_llava(folder, ids=("7", "11", "4")):
    put_official(folder)
    rows = [
        {
            "id": id,
            "conversations": [{"from": "human", "value": f"<image>\n{PROMPTS[id]}"}, {"from": "gpt", "value": ""}],
        }
        for id in ids
    ]
    put_json(folder / "llava_test_CQM-A.json", rows)


def test_the_layouts_give_the_same_questions(tmp_path):
    put_official(tmp_path / "official")
    put_llava(tmp_path / "llava")
    rows = [
        PROBLEMS[id] | MORE | {"image": cell(n) if PROBLEMS[id]["image"] else None}
        for n, id in enumerate(("11", "4", "7"))
    ]
    put_parquet(tmp_path / "parquet/ScienceQA-FULL/test-00000-of-00001.parquet", rows)

    def essence(item):
        return item.question, item.truth, item.choices, len(item.images), item.groups, item.extra["hint"]

    official, llava, parquet = (SQA.load(tmp_path / name, "test") for name in ("official", "llava", "parquet"))
    assert [item.id for item in official] == ["11", "4", "7"] and [item.id for item in llava] == ["7", "11", "4"]
    assert [essence(item) for item in official] == [essence(item) for item in parquet]
    assert sorted(map(str, map(essence, official))) == sorted(map(str, map(essence, llava)))
    assert [item.groups["context"] for item in official] == ["IMG", "TXT", "TXT + IMG"]
    assert official[0].groups["subject"] == "NAT"
    assert official[0].images == (str(tmp_path / "official/images/test/11/image.png"),)
    assert [item.id for item in SQA.load(tmp_path / "official", "val")] == ["9"]
    for place, id in enumerate(("11", "4", "7")):
        assert SQA.prompt(official[place], LLAVA).removeprefix("<image>\n") == f"{PROMPTS[id]}\n{LETTER}"
    assert [SQA.prompt(item, LLAVA) for item in llava] == [SQA.prompt(official[place], LLAVA) for place in (2, 0, 1)]


def test_prompts_of_other_tools(tmp_path):
    put_official(tmp_path)
    red, wrote, _ = SQA.load(tmp_path, "test")
    assert SQA.prompt(red, LLAVA).startswith("<image>\nContext") and SQA.prompt(wrote, LLAVA).startswith("Context")
    assert SQA.prompt(red, LMMS_EVAL) == f"<image>\nWhich  is red?\nA. rose\nB. grass\n{LETTER}"
    assert SQA.prompt(wrote, LMMS_EVAL) == f"Context: A letter.\nWho wrote?\nA. she\nB. he\nC. they\n{LETTER}"
    assert SQA.prompt(red, VLMEVALKIT) == f"<image> Which  is red?\nA. rose\nB. grass\n{LETTER}"
    assert SQA.prompt(wrote, VLMEVALKIT) == f"A letter.\nWho wrote?\nA. she\nB. he\nC. they\n{LETTER}"


def test_the_table_of_vlmevalkit(tmp_path):
    rows = [
        {
            "index": 5,
            "question": "Q?",
            "A": "x",
            "B": "y",
            "C": "",
            "answer": "B",
            "hint": "nan",
            "image": base64_jpeg(1),
        }
    ]
    put_tsv(tmp_path / "ScienceQA_TEST.tsv", rows)
    (item,) = SQA.load(tmp_path, "test")
    assert (item.id, item.truth, item.choices, item.extra["hint"]) == ("5", "B", ("x", "y"), "")


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    put_llava(tmp_path, ids=("7", "11"))
    with pytest.raises(UserError, match="do not belong together: problem 4 has no question"):
        SQA.load(tmp_path, "test")
    put_llava(tmp_path)
    problems = {"11": PROBLEMS["11"]}
    put_json(tmp_path / "problems.json", problems)
    with pytest.raises(UserError, match="problems.json has no problem 4; 7 of pid_splits.json"):
        SQA.load(tmp_path, "test")
    put_json(tmp_path / "problems.json", PROBLEMS)
    put_json(tmp_path / "llava_test_CQM-A.json", [{"id": "7"}])
    with pytest.raises(UserError, match=r"A.json\[0\] has no id or no question"):
        SQA.load(tmp_path, "test")


def test_broken_problems_are_named(tmp_path):
    put_official(tmp_path, _4={"answer": 3}, _7={"choices": "here"})
    with pytest.raises(UserError) as error:
        SQA.load(tmp_path, "test")
    assert "['4']: the answer is the place of one of the 3 choices, found 3" in str(error.value)
    assert "['7']: the answer is the place of one of the 1 choices, found 1" in str(error.value)
    put_official(tmp_path)
    (tmp_path / "images/test/7/image.png").unlink()
    with pytest.raises(UserError, match="1 image is missing: 7/image.png"):
        SQA.load(tmp_path, "test")
    (tmp_path / "pid_splits.json").unlink()
    with pytest.raises(UserError, match="pid_splits.json.*lupantech/ScienceQA"):
        SQA.load(tmp_path, "test")


def test_a_missing_answer_is_wrong_with_an_image_too(tmp_path):
    put_official(tmp_path)
    items = SQA.load(tmp_path, "test")
    assert SQA.score(items, ["A", "C", "B"], LLAVA).numbers == {"image_accuracy": 100, "accuracy": 100}
    scores = SQA.score(items, ["A", None, None], LLAVA)
    assert scores.numbers == {"image_accuracy": 50, "accuracy": pytest.approx(100 / 3)}
    assert scores.groups["context"] == {"IMG": 100, "TXT": 0, "TXT + IMG": 0} and scores.credits.tolist() == [1, 0, 0]
    assert SQA.parse(items[0], "C", LLAVA) is None  # there are two choices
    assert SQA.continuations(items[1], LLAVA) == ("A", "B", "C")


def test_order_changes_nothing_and_draws_have_their_number(tmp_path):
    put_official(tmp_path)
    few = SQA.load(tmp_path, "test")
    items = [dataclasses.replace(item, id=f"{item.id}-{copy}") for copy in range(8) for item in few]
    values = ["A", "C", None, "B", "C", "B"] * 4
    assert_shuffling_changes_nothing(SQA, items, values, LLAVA)
    assert_resample_equals_score(SQA, items, values, LLAVA)


def test_answers_of_llava_name_their_problem(tmp_path):
    """Ids are those of `question_id` in LLaVA's answer file."""
    put_llava(tmp_path)
    ids = {row["id"] for row in json.loads((tmp_path / "llava_test_CQM-A.json").read_text())}
    assert {item.id for item in SQA.load(tmp_path, "test")} == ids
