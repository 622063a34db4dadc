"""MMMU: images in questions and options, open questions, subjects."""

import json
import math

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.benchmark import LMMS_EVAL, OFFICIAL, VLMEVALKIT
from jaxvlm.evaluation.benchmarks.mmmu import DISCIPLINES, Mmmu
from tests.evaluation.choice_files import assert_shuffling_changes_nothing
from tests.evaluation.layouts import cell, jpeg, put_parquet

MMMU = Mmmu()
LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def row(id, question, options, answer, images, kind="multiple-choice"):
    pictures = {f"image_{n}": cell(n) if n <= images else None for n in range(1, 8)}
    return {
        "id": id,
        "question": question,
        "options": str(options),
        "answer": answer,
        "question_type": kind,
        **pictures,
    }


ROWS = [
    row("validation_Art_1", "Who painted <image 1>?", ["Monet", "Turner's son"], "B", 1),
    row("validation_Art_Theory_2", "Which fits <image 1>?", ["<image 2>", "<image 3>", "none"], "A", 3),
    row("validation_Math_7", "<image 2> and <image 1>: what is x?", [], "3.5", 2, "open"),
    row("validation_Physics_30", "How much is <image 1>?", [], "['1/2', '0.5']", 1, "open"),
]


def load(folder, rows=ROWS, split="validation"):
    put_parquet(folder / f"data/{split}-00000-of-00001.parquet", rows)
    return MMMU.load(folder, split)


def test_images_stand_where_their_marks_are(tmp_path):
    art, theory, maths, physics = load(tmp_path)
    assert theory.images == (jpeg(1), jpeg(2), jpeg(3)) and maths.images == (jpeg(2), jpeg(1))
    assert art.groups == {"subject": "Art", "discipline": "Art and Design", "kind": "choice"}
    assert physics.groups["kind"] == "open" and physics.truth == ["1/2", "0.5"] and maths.truth == ["3.5"]
    assert MMMU.prompt(art, OFFICIAL) == f"Who painted <image>?\n(A) Monet\n(B) Turner's son\n\n{LETTER}"
    assert MMMU.prompt(theory, OFFICIAL) == f"Which fits <image>?\n(A) <image>\n(B) <image>\n(C) none\n\n{LETTER}"
    assert MMMU.prompt(theory, LMMS_EVAL) == f"Which fits <image>?\nA. <image>\nB. <image>\nC. none\n\n{LETTER}"
    assert MMMU.prompt(maths, OFFICIAL) == f"<image> and <image>: what is x?\n{SHORT}"
    assert MMMU.prompt(maths, LMMS_EVAL) == f"<image> and <image>: what is x?\n\n{SHORT}"
    assert MMMU.prompt(art, VLMEVALKIT) == f"<image> Who painted <image 1>?\nA. Monet\nB. Turner's son\n{LETTER}"
    assert MMMU.prompt(maths, VLMEVALKIT).startswith(
        "<image> <image> <image 2> and <image 1>: what is x?\nAnswer the qu"
    )


def test_subjects_in_folders_of_their_own(tmp_path):
    put_parquet(tmp_path / "Art/validation-00000-of-00001.parquet", ROWS[:1])
    put_parquet(tmp_path / "Math/validation-00000-of-00001.parquet", ROWS[2:3])
    assert [item.id for item in MMMU.load(tmp_path, "validation")] == ["validation_Art_1", "validation_Math_7"]
    with pytest.raises(UserError, match=r"data/dev-\*.parquet.*MMMU/MMMU"):
        MMMU.load(tmp_path, "dev")
    assert sum(len(subjects.split()) for subjects in DISCIPLINES.values()) == 30


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id": "validation_Alchemy_1"}, "one of the 30 subjects, found 'validation_Alchemy_1'"),
        ({"options": "['a', b]"}, r'"options" is the text of a list .*found "\[\'a\', b\]"'),
        ({"options": "__import__('os').getcwd()"}, '"options" is the text of a list'),
        ({"answer": "C"}, "the answer is one of A, B, found 'C'"),
        ({"image_1": None}, "the text has <image 1>, and image_1 is null"),
        ({"question": "Who <image 9>?"}, "numbered from 1 to 7"),
        ({"question": "Who <image>?"}, "no mark of an image here"),
    ],
)
def test_broken_rows_are_named(tmp_path, change, message):
    with pytest.raises(UserError, match=rf"parquet\[0\]: .*{message}"):
        load(tmp_path, [ROWS[0] | change, *ROWS[1:]])


def test_choices_and_open_answers_are_scored(tmp_path):
    items = load(tmp_path)
    texts = ["The answer is (B).", "I do not know", "so x = 3.50", "it is 0.5"]
    values = [MMMU.parse(*pair, OFFICIAL) for pair in zip(items, texts, strict=True)]
    assert values[:2] == ["B", None] and "3.50" in values[2]  # nothing is drawn
    json.dumps(values)
    scores = MMMU.score(items, values, OFFICIAL)
    assert scores.numbers == {"accuracy": 75} and scores.credits.tolist() == [1, 0, 1, 1]
    assert scores.groups["discipline"] == {"Art and Design": 50, "Science": 100}
    lmms = [MMMU.parse(*pair, LMMS_EVAL) for pair in zip(items, texts, strict=True)]
    assert MMMU.score(items, lmms, LMMS_EVAL).credits.tolist() == [1, 0, 1, 0]  # it does not read lists of answers
    kit = [MMMU.parse(item, text, VLMEVALKIT) for item, text in zip(items, ["B", "B", "3.5", "A"], strict=True)]
    assert kit == ["B", "B", "A", "A"] and MMMU.score(items, kit, VLMEVALKIT).credits.tolist() == [1, 0, 1, 1]
    assert_shuffling_changes_nothing(MMMU, items, values, OFFICIAL)
    assert MMMU.score(items, [None] * 4, OFFICIAL).numbers["accuracy"] == 0
    assert MMMU.parse(items[2], "", OFFICIAL) is None
    assert MMMU.continuations(items[1], OFFICIAL) == ("A", "B", "C") and MMMU.continuations(items[2], OFFICIAL) == ()


def test_the_split_test_has_no_number_and_a_submission(tmp_path):
    rows = [ROWS[0] | {"id": "test_Art_1", "answer": "?"}, ROWS[2] | {"id": "test_Math_1", "answer": "?"}]
    items = load(tmp_path, rows, "test")
    scores = MMMU.score(items, ["A", ["x"]], OFFICIAL)
    assert scores.numbers == {} and all(math.isnan(credit) for credit in scores.credits)
    files = MMMU.submission(items, ["A", "3.5"], ["A", ["3.5"]])
    assert json.loads(files["mmmu.json"]) == {"test_Art_1": "A", "test_Math_1": "3.5"}
