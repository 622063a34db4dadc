"""MME: layouts, pairs of questions, points."""

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.benchmark import LLAVA, LMMS_EVAL, OFFICIAL, VLMEVALKIT, Item
from jaxvlm.evaluation.benchmarks.mme import COGNITION, PERCEPTION, Mme
from tests.evaluation.choice_files import (
    assert_resample_equals_score,
    assert_shuffling_changes_nothing,
    base64_jpeg,
    put_tsv,
)
from tests.evaluation.frozen import cases
from tests.evaluation.layouts import cell, put_images, put_lines, put_parquet

MME = Mme()
SHORT = "Answer the question using a single word or phrase."
ASK = "Please answer yes or no."
QUESTIONS = [  # sub-task, stem of the image, question without a request, answer
    ("artwork", "16006", "Is this artwork by Monet?", "Yes"),
    ("artwork", "16006", "Is this artwork by Turner?", "No"),
    ("code_reasoning", "0020", "Is the output 3? ", "Yes"),
    ("code_reasoning", "0020", "Is the output 4? ", "No"),
]


def put_release(folder):
    """MME's folders: artwork has its own for images and questions."""
    put_images(folder, "artwork/images/16006.jpg", "code_reasoning/0020.png")
    (folder / "artwork/questions_answers_YN").mkdir(exist_ok=True)
    for task, place in (("artwork", "artwork/questions_answers_YN/16006"), ("code_reasoning", "code_reasoning/0020")):
        lines = [f"{question} {ASK}\t{answer}" for t, _, question, answer in QUESTIONS if t == task]
        (folder / f"{place}.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())


def put_llava(folder):
    put_release(folder / "MME_Benchmark_release_version" / "MME_Benchmark")
    images = {"artwork": "artwork/images/16006.jpg", "code_reasoning": "code_reasoning/0020.png"}
    rows = [
        {"question_id": image.replace("images/", ""), "image": image, "text": f"{q.strip()}\n{SHORT}", "category": task}
        for task, _, q, _ in QUESTIONS
        for image in [images[task]]
    ]
    put_lines(folder / "llava_mme.jsonl", rows)


def made(rows):
    items = [
        Item(f"{image}#{number % 2 + 1}", ("x",), "Is it?", truth.lower(), groups={"subtask": task}, cluster=image)
        for number, (task, image, truth, _) in enumerate(rows)
    ]
    return items, [text for *_, text in rows]


def scored():
    case = next(row for row in cases("choices_scores") if row["kind"] == "mme")
    return case, *made(case["rows"])


def test_the_layouts_give_the_same_questions(tmp_path):
    put_llava(tmp_path / "llava")
    put_release(tmp_path / "mme")
    ids = {"artwork": "artwork/16006.jpg", "code_reasoning": "code_reasoning/0020.png"}
    rows = [
        {"question_id": ids[t], "image": cell(n // 2), "question": f"{q} {ASK}", "answer": a, "category": t}
        for n, (t, _, q, a) in enumerate(QUESTIONS)
    ]
    put_parquet(tmp_path / "parquet/data/test-00000-of-00001.parquet", rows)
    table = [
        {
            "index": n,
            "category": t,
            "image_path": ids[t],
            "question": f"{q} {ASK}",
            "answer": a,
            "image": base64_jpeg(n // 2),
        }
        for n, (t, _, q, a) in enumerate(QUESTIONS)
    ]
    put_tsv(tmp_path / "tsv/MME.tsv", table)
    expected = [
        (f"{ids[t]}#{n % 2 + 1}", f"{q} {ASK}", a.lower(), t, ids[t]) for n, (t, _, q, a) in enumerate(QUESTIONS)
    ]
    for name in ("llava", "mme", "parquet", "tsv"):
        items = MME.load(tmp_path / name, "test")
        found = [(item.id, item.question, item.truth, item.groups["subtask"], item.cluster) for item in items]
        assert sorted(found) == sorted(expected), name
    release = tmp_path / "llava/MME_Benchmark_release_version/MME_Benchmark"
    llava = MME.load(tmp_path / "llava", "test")
    assert llava[0].images == (str(release / "artwork/images/16006.jpg"),)
    assert llava[2].images == (str(release / "code_reasoning/0020.png"),)


def test_prompts(tmp_path):
    put_llava(tmp_path)
    item = MME.load(tmp_path, "test")[2]
    assert MME.prompt(item, LLAVA) == f"<image>\nIs the output 3?\n{SHORT}"
    assert MME.prompt(item, LMMS_EVAL) == f"<image>\nIs the output 3? \n{SHORT}"  # of two spaces one is left
    assert MME.prompt(item, OFFICIAL) == f"<image>\nIs the output 3?  {ASK}"
    assert MME.prompt(item, VLMEVALKIT) == f"<image> Is the output 3?  {ASK}"


def test_images_without_just_two_questions_are_named(tmp_path):
    put_release(tmp_path)
    with (tmp_path / "code_reasoning/0020.txt").open("a") as file:
        file.write(f"\nIs it? {ASK}\tNo\n")
    (tmp_path / "artwork/questions_answers_YN/16006.txt").write_text(f"Is it? {ASK}\tNo\n")
    with pytest.raises(UserError, match="exactly two .*artwork/16006.jpg has 1; code_reasoning/0020.png has 3"):
        MME.load(tmp_path, "test")


def test_broken_files_are_named(tmp_path):
    put_release(tmp_path)
    path = tmp_path / "code_reasoning/0020.txt"
    path.write_text("Is it? No\nIs it not?\tYes\n")
    with pytest.raises(UserError, match="a TAB and Yes or No, unlike .*0020.txt:1;"):
        MME.load(tmp_path, "test")
    path.write_text("Is it?\tperhaps\nIs it not?\tYes\n")
    with pytest.raises(UserError, match="0020.txt:1: the answer is Yes or No, found 'perhaps'"):
        MME.load(tmp_path, "test")
    put_release(tmp_path)
    (tmp_path / "artwork/images/16006.jpg").unlink()
    with pytest.raises(UserError, match="1 image is missing: ./artwork/images/16006.jpg"):
        MME.load(tmp_path, "test")


def test_a_question_of_llava_without_a_text_file_is_named(tmp_path):
    put_llava(tmp_path)
    (tmp_path / "MME_Benchmark_release_version/MME_Benchmark/code_reasoning/0020.txt").unlink()
    with pytest.raises(UserError, match="jsonl:3: no text file of MME has .*0020.png: 'Is the output 3.'"):
        MME.load(tmp_path, "test")


@pytest.mark.parametrize("dialect", MME.dialects)
def test_points_are_those_of_the_published_scorers(dialect):
    case, items, texts = scored()
    values = [MME.parse(*pair, dialect) for pair in zip(items, texts, strict=True)]
    scores = MME.score(items, values, dialect)
    expected = {LLAVA: case["totals"], OFFICIAL: case["totals"]}.get(dialect) or case[dialect]
    assert list(scores.numbers.values()) == pytest.approx(expected)
    if dialect == OFFICIAL:
        assert scores.groups["subtask"] == pytest.approx(case["official"])
    assert list(scores.numbers) == ["perception", "cognition"]
    assert_shuffling_changes_nothing(MME, items, values, dialect)
    assert_resample_equals_score(MME, items, values, dialect)


def test_perfect_and_constant_answers():
    items, _ = made(
        [(t, f"{t}/{i}.jpg", truth, "") for t in PERCEPTION + COGNITION for i in "ab" for truth in ("Yes", "No")]
    )
    perfect = MME.score(items, [item.truth for item in items], LLAVA)
    assert perfect.numbers == {"perception": 2000, "cognition": 800}
    assert set(perfect.groups["subtask"].values()) == {200.0} and perfect.counts["subtask"]["OCR"] == 4
    always = MME.score(items, ["yes"] * len(items), LLAVA)
    assert always.numbers == {"perception": 500, "cognition": 200}
    assert MME.score(items[:1], ["yes"], LLAVA).numbers == {"perception": 100, "cognition": 0}  # half a pair: no acc+
    assert [MME.parse(items[0], text, LLAVA) for text in MME.continuations(items[0], LLAVA)] == ["yes", "no"]


def test_the_submission_has_two_lines_for_each_image(tmp_path):
    put_release(tmp_path)
    items = MME.load(tmp_path, "test")
    items = [items[0], items[2], items[1], items[3]]
    files = MME.submission(items, ["Yes", "a\tb\nc", "No", "No"], ["yes", None, "no", "no"])
    assert files == {
        "artwork.txt": f"16006.jpg\tIs this artwork by Monet? {ASK}\tYes\tYes\n"
        f"16006.jpg\tIs this artwork by Turner? {ASK}\tNo\tNo\n",
        "code_reasoning.txt": f"0020.png\tIs the output 3? {ASK}\tYes\ta b c\n"
        f"0020.png\tIs the output 4? {ASK}\tNo\tNo\n",
    }
