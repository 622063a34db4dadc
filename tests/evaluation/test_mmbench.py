"""MMBench: tables, images that other rows have, circular accuracy."""

import io
import math

import openpyxl
import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.benchmark import LLAVA, LMMS_EVAL, VLMEVALKIT, Item
from jaxvlm.evaluation.benchmarks.mmbench import MmBench
from tests.evaluation.choice_files import (
    assert_resample_equals_score,
    assert_shuffling_changes_nothing,
    base64_jpeg,
    put_tsv,
)
from tests.evaluation.frozen import cases
from tests.evaluation.layouts import cell, jpeg, put_parquet

MMBENCH = MmBench()
LETTER = "Answer with the option's letter from the given choices directly."
COLUMNS = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category", "image", "split")
ROWS = [  # two questions; the second has three options, a hint, and the image of the first
    (0, "Which?", "nan", "cat", "dog", "bus", "tree", "B", "identity", "perception", base64_jpeg(0), "dev"),
    (1, "How many?", "Count.", "1", "2", "3", "", "C", "count", "reasoning", "0", "dev"),
    (1_000_000, "Which?", "", "dog", "bus", "tree", "cat", "A", "identity", "perception", "0", "dev"),
    (1_000_001, "How many?", "Count.", "2", "3", "1", "", "B", "count", "reasoning", "0", "dev"),
]


def table(**changes):
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in ROWS]
    for place, change in changes.items():
        rows[int(place[1:])].update(change)
    return rows


def load(folder, rows, split="dev_en", name="MMBench_DEV_EN.tsv"):
    put_tsv(folder / name, rows)
    return MMBENCH.load(folder, split)


def made(rows):
    return [
        Item(
            str(row["index"]),
            ("x",),
            row["question"],
            row["answer"],
            tuple(row[letter] for letter in "ABCD" if letter in row),
            {"category": row["category"], "l2-category": row["l2-category"]},
            str(row["index"] % 1_000_000),
            extra={"language": "en"},
        )
        for row in rows
    ]


def test_a_table_with_missing_cells_and_shared_images(tmp_path):
    items = load(tmp_path, table())
    assert [item.id for item in items] == ["0", "1", "1000000", "1000001"]
    assert [item.cluster for item in items] == ["0", "1", "0", "1"]
    assert items[1].choices == ("1", "2", "3") and items[1].truth == "C"
    assert all(item.images == (jpeg(0),) for item in items)
    assert items[3].images[0] is items[0].images[0]
    assert items[0].groups == {"category": "identity", "l2-category": "perception"}
    assert MMBENCH.continuations(items[1], LLAVA) == ("A", "B", "C")


def test_parquet_gives_the_same_as_the_table(tmp_path):
    items = load(tmp_path / "tsv", table())
    rows = [row | {"image": cell(0), "L2-category": row.pop("l2-category"), "D": row["D"] or "nan"} for row in table()]
    put_parquet(tmp_path / "parquet/en/dev-00000-of-00001.parquet", rows)
    others = MMBENCH.load(tmp_path / "parquet", "dev_en")

    def essence(item):
        return item.id, item.question, item.truth, item.choices, item.images, item.groups, item.cluster, item.extra

    assert [essence(item) for item in items] == [essence(item) for item in others]


def test_prompts(tmp_path):
    first, second, *_ = load(tmp_path, table())
    assert MMBENCH.prompt(first, LLAVA) == f"<image>\nWhich?\nA. cat\nB. dog\nC. bus\nD. tree\n{LETTER}"
    assert MMBENCH.prompt(second, LLAVA) == f"<image>\nCount.\nHow many?\nA. 1\nB. 2\nC. 3\n{LETTER}"
    assert MMBENCH.prompt(second, VLMEVALKIT) == f"<image> Count.\nHow many?\nA. 1\nB. 2\nC. 3\n{LETTER}"
    assert (
        MMBENCH.prompt(second, LMMS_EVAL)
        == f"<image>\nCount. How many? There are several options:\nA. 1\nB. 2\nC. 3\n\n{LETTER}"
    )
    chinese = load(tmp_path, table(_0={"question": "哪个？"}), "dev_cn", "mmbench_dev_cn_20231003.tsv")[0]
    assert MMBENCH.prompt(chinese, LLAVA).endswith("\nD. tree\n请直接回答选项字母。")
    assert MMBENCH.prompt(chinese, VLMEVALKIT).endswith("\nD. tree\n请直接回答选项字母。")
    assert MMBENCH.prompt(chinese, LMMS_EVAL).startswith("<image>\n哪个？ 有如下几个选项：\nA. cat")
    assert MMBENCH.prompt(chinese, LMMS_EVAL).endswith("\n\n请直接使用所提供的选项字母作为答案回答。")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image": "77"}, "found '77', which is no row"),
        ({"image": "1000001"}, "is the index 1000001, whose row has no image itself"),
        ({"image": "!" * 100}, '"image" is not base64'),
        ({"image": ""}, '"image" is one image, found 0'),
        ({"answer": "D"}, "the answer is one of A, B, C, found 'D'"),
        ({"B": ""}, "at least the options A and B, found 1"),
        ({"index": "x"}, "\"index\" is a number, found 'x'"),
    ],
)
def test_broken_rows_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=rf"MMBench_DEV_EN.tsv\[1\]: .*{message}"):
        load(tmp_path, table(_1=change))


def test_doubled_rows_and_rotations_without_a_question_are_named(tmp_path):
    with pytest.raises(UserError, match="the same id: 0 "):
        load(tmp_path, [*table(), table()[0]])
    with pytest.raises(UserError, match=r"the question of .*\[2\] \(index 1000001\) is not there"):
        load(tmp_path, [table()[0], *table()[2:]])


@pytest.mark.parametrize("dialect", [LMMS_EVAL, VLMEVALKIT])
def test_circular_accuracy_is_that_of_the_published_scorers(dialect):
    case = next(row for row in cases("choices_scores") if row["kind"] == "mmbench")
    items = made(case["rows"])
    values = [MMBENCH.parse(item, row["prediction"], dialect) for item, row in zip(items, case["rows"], strict=True)]
    scores = MMBENCH.score(items, values, dialect)
    assert scores.numbers["circular_accuracy"] == pytest.approx(100 * case[dialect])
    assert 20 < scores.numbers["circular_accuracy"] < 80 and next(iter(scores.numbers)) == "circular_accuracy"
    assert scores.numbers["vanilla_accuracy"] > scores.numbers["circular_accuracy"]
    if dialect == LMMS_EVAL:
        expected = {key: 100 * value for key, value in case["lmms_eval_l2"].items()}
        assert scores.groups["l2-category"] == pytest.approx(expected)
    assert_shuffling_changes_nothing(MMBENCH, items, values, dialect)
    assert_resample_equals_score(MMBENCH, items, values, dialect)


def test_a_question_is_right_only_if_all_its_rotations_are(tmp_path):
    items = load(tmp_path, table())
    right = [item.truth for item in items]
    perfect = MMBENCH.score(items, right, LLAVA)
    assert perfect.numbers == {"circular_accuracy": 100, "vanilla_accuracy": 100, "rows_per_question": 2}
    one_wrong = MMBENCH.score(items, [*right[:2], "C", right[3]], LLAVA)
    assert one_wrong.numbers["circular_accuracy"] == 50 and one_wrong.numbers["vanilla_accuracy"] == 100
    assert one_wrong.credits.tolist() == [1, 1, 0, 1] and one_wrong.groups["category"] == {"count": 100, "identity": 0}
    assert one_wrong.counts["category"] == {"count": 1, "identity": 1}
    assert MMBENCH.score(items, [None] * 4, LLAVA).numbers["circular_accuracy"] == 0


def test_rotating_the_options_of_all_rows_keeps_the_score():
    case = next(row for row in cases("choices_scores") if row["kind"] == "mmbench")
    items = made(case["rows"])
    values = [MMBENCH.parse(item, row["prediction"], LLAVA) for item, row in zip(items, case["rows"], strict=True)]
    turned, moved = [], []
    for item, value in zip(items, values, strict=True):
        letters = "ABCD"[: len(item.choices)]
        after = dict(zip(letters, letters[-1] + letters[:-1], strict=True))
        turned.append(made_from(item, item.choices[1:] + item.choices[:1], after[item.truth]))
        moved.append(after.get(value))
    assert MMBENCH.score(turned, moved, LLAVA).numbers == MMBENCH.score(items, values, LLAVA).numbers


def made_from(item, choices, truth):
    return Item(item.id, item.images, item.question, truth, choices, item.groups, item.cluster, extra=item.extra)


def test_a_split_without_answers_has_no_number_and_a_submission(tmp_path):
    rows = [{key: value for key, value in row.items() if key != "answer"} for row in table()]
    items = load(tmp_path, rows, "test_en", "MMBench_TEST_EN.tsv")
    scores = MMBENCH.score(items, ["A"] * 4, LLAVA)
    assert scores.numbers == {} and all(math.isnan(credit) for credit in scores.credits)
    (content,) = MMBENCH.submission(items, ["A", '=B "x"', "C\0", "D\n"], ["A", "B", "C", "D"]).values()
    head, *rows = openpyxl.load_workbook(io.BytesIO(content)).active.iter_rows()
    assert [cell.value for cell in head] == ["index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert [cell.value or "" for cell in rows[1]] == [1, "How many?", "1", "2", "3", "", '=B "x"', "", "dev"]
    assert rows[1][6].data_type == "s" and [row[6].value for row in rows[2:]] == ["C", "D\n"]
