"""SEED-Bench: layouts, the frame of a video, ranking of texts, accuracy by kind."""

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.benchmark import LLAVA, LMMS_EVAL, OFFICIAL, VLMEVALKIT
from jaxvlm.evaluation.benchmarks.seedbench import LMMS_EVAL_PPL, SeedBench
from tests.evaluation.choice_files import assert_shuffling_changes_nothing, base64_jpeg, put_tsv
from tests.evaluation.layouts import cell, jpeg, put_images, put_json, put_lines, put_parquet

SEED = SeedBench()
LETTER = "Answer with the option's letter from the given choices directly."
TYPES = {"Scene Understanding": 1, "Action Recognition": 10}


def question(id, kind, data, answer, number):
    texts = {f"choice_{letter}": f"{letter} {id}" for letter in "abcd"}
    return {
        "question_id": id,
        "question": f"What of {id}?",
        "answer": answer,
        "data_type": kind,
        "data_id": data,
        "question_type_id": number,
        "segment": None,
        **texts,
    }


QUESTIONS = [
    question("101669", "image", "1454426_2591111986", "A", 1),
    question(101670, "image", "1454426_2591111986", "D", 1),
    question("v0", "video", "187783.webm", "B", 10),
]


def put_official(folder, frame="187783.png"):
    put_json(folder / "SEED-Bench.json", {"question_type": TYPES, "questions": QUESTIONS}, mark=True)
    put_images(folder, "SEED-Bench-image/1454426_2591111986", *([f"SEED-Bench-video-image/{frame}"] if frame else []))


def test_the_layouts_give_the_same_questions(tmp_path):
    put_official(tmp_path / "official")
    rows = [
        row
        | {
            "question_id": str(row["question_id"]),
            "image": [cell(n) for n in ((5, 1, 5) if row["data_type"] == "video" else (0,))],
        }
        for row in QUESTIONS
    ]
    put_parquet(tmp_path / "parquet/data/test-00000-of-00001.parquet", rows)
    official, parquet = SEED.load(tmp_path / "official", "all"), SEED.load(tmp_path / "parquet", "all")
    for one, other in zip(official, parquet, strict=True):
        assert (one.id, one.question, one.truth, one.choices) == (other.id, other.question, other.truth, other.choices)
        assert one.groups["data"] == other.groups["data"]
    assert parquet[2].images == (jpeg(1),)  # the middle frame
    assert official[2].images == (str(tmp_path / "official/SEED-Bench-video-image/187783.png"),)
    assert official[0].groups == {"type": "Scene Understanding", "data": "image"}
    assert [len(SEED.load(tmp_path / "official", split)) for split in ("image", "video")] == [2, 1]


def test_names_of_images_in_llavas_file(tmp_path):
    put_official(tmp_path, frame="other/name.png")
    rows = [{"question_id": "v0", "image": "SEED-Bench-video-image/other/name.png", "text": ""}]
    put_lines(tmp_path / "llava-seed-bench.jsonl", rows)
    assert SEED.load(tmp_path, "video")[0].images == (str(tmp_path / "SEED-Bench-video-image/other/name.png"),)


def test_videos_without_frames_are_refused_and_images_are_not(tmp_path):
    put_official(tmp_path, frame="")
    with pytest.raises(
        UserError, match="1 image is missing: SEED-Bench-video-image/187783.webm .*take the split image"
    ):
        SEED.load(tmp_path, "all")
    assert len(SEED.load(tmp_path, "image")) == 2
    put_tsv(tmp_path / "kit/SEEDBench_IMG.tsv", [table_row()])
    with pytest.raises(UserError, match="about images only; take the split image"):
        SEED.load(tmp_path / "kit", "all")
    assert SEED.load(tmp_path / "kit", "image")[0].groups == {"type": "Scene Understanding", "data": "image"}


def table_row():
    return {
        **{"index": 3, "question": "Q?", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "C"},
        **{"category": "Scene Understanding", "image": base64_jpeg(0)},
    }


def test_broken_questions_are_named(tmp_path):
    rows = [QUESTIONS[0] | {"answer": "E"}, {key: QUESTIONS[1][key] for key in QUESTIONS[1] if key != "choice_c"}]
    put_json(tmp_path / "SEED-Bench.json", {"question_type": TYPES, "questions": rows})
    put_images(tmp_path, "SEED-Bench-image/1454426_2591111986")
    with pytest.raises(
        UserError, match=r"\[0\]: the answer is one of A, B, C and D, found 'E'; .*\"choice_c\" is missing"
    ):
        SEED.load(tmp_path, "all")


def test_prompts_and_continuations(tmp_path):
    put_official(tmp_path)
    item = SEED.load(tmp_path, "all")[0]
    options = "A. a 101669\nB. b 101669\nC. c 101669\nD. d 101669"
    asked = f"What of 101669?\n{options}\n{LETTER}"
    assert SEED.prompt(item, LLAVA) == SEED.prompt(item, LMMS_EVAL) == f"<image>\n{asked}"
    assert SEED.prompt(item, VLMEVALKIT) == f"<image> {asked}"
    assert SEED.prompt(item, OFFICIAL) == "<image>\nQuestion: What of 101669?\nAnswer:"
    assert SEED.prompt(item, LMMS_EVAL_PPL) == "<image>\nWhat of 101669? Answer :"
    assert SEED.continuations(item, LLAVA) == ("A", "B", "C", "D")
    for dialect in SEED.dialects:
        answers = SEED.continuations(item, dialect)
        assert [SEED.parse(item, answer, dialect) for answer in answers] == ["A", "B", "C", "D"]


def test_accuracy_by_kind(tmp_path):
    put_official(tmp_path)
    items = SEED.load(tmp_path, "all")
    values = ["A", "A", None]
    scores = SEED.score(items, values, LLAVA)
    assert scores.numbers == {"accuracy": pytest.approx(100 / 3), "image_accuracy": 50, "video_accuracy": 0}
    assert scores.groups["type"] == {"Action Recognition": 0, "Scene Understanding": 50}
    kit = SEED.score(items, values, VLMEVALKIT)
    assert kit.numbers == {"accuracy": 50, "image_accuracy": 50} and kit.counts["data"] == {"image": 2}
    assert SEED.score(items, [item.truth for item in items], LLAVA).numbers["accuracy"] == 100
    assert_shuffling_changes_nothing(SEED, items, values, LLAVA)
    lines = SEED.submission(items, ["A", "a, I think", "?"], ["A", None, None])["seedbench.jsonl"].splitlines()
    assert lines[0] == '{"question_id": "101669", "prediction": "A"}' and lines[1].endswith('"a, I think"}')
