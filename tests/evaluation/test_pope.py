"""POPE: layouts, pairing of questions and labels, numbers."""

import json

import numpy as np
import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.benchmark import LLAVA, LMMS_EVAL, OFFICIAL, VLMEVALKIT, Item
from jaxvlm.evaluation.benchmarks.pope import Pope
from tests.evaluation.choice_files import (
    assert_resample_equals_score,
    assert_shuffling_changes_nothing,
    base64_jpeg,
    put_tsv,
)
from tests.evaluation.frozen import cases
from tests.evaluation.layouts import cell, put_images, put_lines, put_parquet

POPE = Pope()
SHORT = "Answer the question using a single word or phrase."
IMAGES = ("COCO_val2014_000000000001.jpg", "COCO_val2014_000000000002.jpg")
QUESTIONS = [  # category, image, question, label
    ("random", IMAGES[0], "Is there a dog in the image?", "yes"),
    ("random", IMAGES[0], "Is there a cat in the image?", "no"),
    ("random", IMAGES[1], "Is there a dog in the image?", "no"),
    ("popular", IMAGES[0], "Is there a dog in the image?", "yes"),
    ("popular", IMAGES[1], "Is there a person in the image?", "no"),
    ("adversarial", IMAGES[1], "Is there a bus in the image?", "yes"),
]


def put_labels(folder, questions=QUESTIONS):
    for category in ("random", "popular", "adversarial"):
        own = [row for row in questions if row[0] == category]
        rows = [{"question_id": n, "image": i, "text": q, "label": a} for n, (_, i, q, a) in enumerate(own, 1)]
        put_lines(folder / f"coco_pope_{category}.json", rows)


def put_llava(folder):
    """LLaVA's folder; its questions are in another order than the labels."""
    rows = [
        {"question_id": number, "image": image, "text": f"{question}\n{SHORT}", "category": category}
        for number, (category, image, question, _) in enumerate(reversed(QUESTIONS), 1)
    ]
    put_lines(folder / "llava_pope_test.jsonl", rows)
    put_labels(folder / "coco")
    put_images(folder / "val2014", *IMAGES)


def made(rows):
    """Items and texts of rows of category, truth and text."""
    items = [
        Item(str(n), ("x.jpg",), "?", truth, groups={"category": category}, cluster=f"{category} {n // 2}")
        for n, (category, truth, _) in enumerate(rows)
    ]
    return items, [text for *_, text in rows]


def test_the_layouts_give_the_same_questions(tmp_path):
    put_llava(tmp_path / "llava")
    put_labels(tmp_path / "pope")
    put_images(tmp_path / "pope", *IMAGES)
    rows = [
        {
            "question_id": str(n),
            "question": q,
            "answer": a,
            "image_source": i,
            "category": c,
            "image": cell(IMAGES.index(i)),
        }
        for n, (c, i, q, a) in enumerate(QUESTIONS)
    ]
    put_parquet(tmp_path / "parquet" / "data" / "test-00000-of-00001.parquet", rows)
    table = [
        {"index": n, "image": base64_jpeg(IMAGES.index(i)), "question": q, "answer": a.capitalize(), "category": c}
        for n, (c, i, q, a) in enumerate(QUESTIONS)
    ]
    assert QUESTIONS[0][1:] == QUESTIONS[3][1:]  # a question of two categories is one row there
    table[0]["category"] = "random,popular"
    del table[3]
    put_tsv(tmp_path / "tsv" / "POPE.tsv", table)
    found = {}
    for name in ("llava", "pope", "parquet", "tsv"):
        items = POPE.load(tmp_path / name, "test")
        found[name] = sorted((item.groups["category"], item.question, item.truth) for item in items)
        assert len({item.id for item in items}) == 6
    assert found["llava"] == found["pope"] == found["parquet"] == found["tsv"]
    assert found["llava"] == sorted((c, q, a) for c, _, q, a in QUESTIONS)
    llava = POPE.load(tmp_path / "llava", "test")
    assert llava[0].id == "1" and llava[0].groups == {"category": "adversarial"} and llava[0].truth == "yes"
    assert llava[0].images == (str(tmp_path / "llava/val2014" / IMAGES[1]),) and llava[0].cluster == IMAGES[1]
    assert [item.id for item in POPE.load(tmp_path / "llava", "popular")] == ["2", "3"]


def test_prompts(tmp_path):
    put_llava(tmp_path)
    item = POPE.load(tmp_path, "test")[0]
    asked = "<image>\nIs there a bus in the image?"
    assert POPE.prompt(item, LLAVA) == POPE.prompt(item, LMMS_EVAL) == f"{asked}\n{SHORT}"
    assert POPE.prompt(item, OFFICIAL) == asked
    assert POPE.prompt(item, VLMEVALKIT) == "<image> Is there a bus in the image?"


def test_questions_and_labels_that_do_not_belong_together_are_refused(tmp_path):
    put_llava(tmp_path)
    put_labels(tmp_path / "coco", [*QUESTIONS[1:], ("random", IMAGES[1], "Is there a fork in the image?", "no")])
    with pytest.raises(UserError) as error:
        POPE.load(tmp_path, "test")
    assert "1 questions without one label" in str(error.value) and "1 labels without a question" in str(error.value)
    assert "Is there a dog in the image?" in str(error.value) and "Is there a fork" in str(error.value)


def test_all_missing_images_and_all_broken_rows_are_in_one_message(tmp_path):
    put_llava(tmp_path)
    for name in IMAGES:
        (tmp_path / "val2014" / name).unlink()
    with pytest.raises(UserError, match="2 images are missing: .*0002.jpg.*0001.jpg"):
        POPE.load(tmp_path, "test")
    put_labels(tmp_path / "coco", [("random", IMAGES[0], "?", "maybe"), ("random", IMAGES[0], "??", "")])
    with pytest.raises(UserError, match="random.json:1: the answer is yes or no, found 'maybe'; .*:2: .* found ''"):
        POPE.load(tmp_path, "test")
    with pytest.raises(UserError, match=r"lacks files of each layout \(layout LLaVA: .*AoiDragon/POPE"):
        POPE.load(tmp_path / "val2014", "test")


def test_doubled_ids_are_refused(tmp_path):
    put_llava(tmp_path)
    path = tmp_path / "llava_pope_test.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8-sig").splitlines()]
    put_lines(path, [row | {"question_id": 7} for row in rows])
    with pytest.raises(UserError, match="the same id: 7"):
        POPE.load(tmp_path, "test")


def test_numbers_are_those_of_the_published_scorers():
    case = next(row for row in cases("choices_scores") if row["kind"] == "pope")
    items, texts = made(case["rows"])

    def numbers(dialect):
        return POPE.score(
            items, [POPE.parse(*pair, dialect) for pair in zip(items, texts, strict=True)], dialect
        ).numbers

    llava, lmms, kit = numbers(LLAVA), numbers(LMMS_EVAL), numbers(VLMEVALKIT)
    for metric in ("f1", "accuracy", "precision", "recall", "yes_ratio"):
        for category, expected in case["llava"].items():
            assert llava[f"{category}_{metric}"] == pytest.approx(100 * expected[metric])
        assert llava[metric] == pytest.approx(100 * np.mean([each[metric] for each in case["llava"].values()]))
    assert next(iter(llava)) == "f1"
    for metric, expected in case["lmms_eval"].items():
        assert lmms[metric] == pytest.approx(100 * expected), metric
    names = {"Overall": "f1", "acc": "accuracy", "precision": "precision", "recall": "recall"}
    for split, expected in case["vlmevalkit"].items():
        prefix = "" if split == "Overall" else f"{split}_"
        for column, metric in names.items():
            assert kit[prefix + metric] == pytest.approx(expected[column]), (split, column)


@pytest.mark.parametrize("dialect", POPE.dialects)
def test_perfect_and_constant_answers(dialect):
    items, _ = made([(c, truth, "") for c in ("random", "popular", "adversarial") for truth in ("yes", "no")] * 4)
    perfect = POPE.score(items, [item.truth for item in items], dialect)
    assert [perfect.numbers[m] for m in ("f1", "accuracy", "precision", "recall", "yes_ratio")] == [100] * 4 + [50]
    assert perfect.credits.tolist() == [1.0] * 24 and perfect.groups["category"]["random"] == 100
    always = POPE.score(items, [POPE.parse(items[0], "Yes", dialect)] * 24, dialect).numbers
    assert (always["recall"], always["yes_ratio"], always["accuracy"]) == (100, 100, 50)
    nothing = POPE.score(items, [None] * 24, dialect).numbers
    assert nothing["f1"] == nothing["accuracy"] == 0
    assert [POPE.parse(items[0], text, dialect) for text in POPE.continuations(items[0], dialect)] == ["yes", "no"]


@pytest.mark.parametrize("dialect", POPE.dialects)
def test_order_changes_nothing_and_draws_have_their_number(dialect):
    case = next(row for row in cases("choices_scores") if row["kind"] == "pope")
    items, texts = made(case["rows"])
    values = [POPE.parse(*pair, dialect) for pair in zip(items, texts, strict=True)]
    assert_shuffling_changes_nothing(POPE, items, values, dialect)
    assert_resample_equals_score(POPE, items, values, dialect)


def test_a_category_that_a_draw_lacks_is_not_in_its_mean():
    items, _ = made([("random", "yes", ""), ("popular", "yes", "")])
    found_R = POPE.resample(items, ["yes", "no"], LLAVA, np.array([[1, 1], [2, 0]], np.int32))
    assert found_R.tolist() == [50, 100]
