"""Files of answers: the log that a run appends to, and files of others."""

import json

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.answer_files import read_answers
from jaxvlm.evaluation.answer_log import Reply, open_log, read_log
from jaxvlm.evaluation.result import score_task
from jaxvlm.evaluation.task import load_tasks
from tests.evaluation import colours

SETTINGS = {"benchmark": "colours", "weights": "abc", "tokens": (1, 2)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return colours.write_files(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def task(root):
    return load_tasks(["tests.evaluation.colours.Colours"], root)[0]


def start(path, *replies, count=3, **options):
    log = open_log(path, SETTINGS, count, resume=False, **options)
    for reply in replies:
        log.append(reply)
    log.close()


def test_a_log_is_continued_after_half_a_line(tmp_path):
    path, first = tmp_path / "x" / "a.jsonl", Reply("1", "ä\n", 3, False, (-0.5, -1.0))
    start(path, first, Reply("2", ""))
    with path.open("a") as file:
        file.write('{"id": "3", "te')
    log = open_log(path, SETTINGS, 3, resume=True)
    assert log.replies == {"1": first, "2": Reply("2", "")}
    log.append(Reply("3", "yes"))
    log.close()
    assert list(read_log(path)[1]) == ["1", "2", "3"]
    along = open_log(path, SETTINGS, 3, resume=True, writes=False)
    along.append(Reply("4", ""))
    assert "4" not in path.read_text() and len(along.replies) == 4


def test_other_settings_are_not_continued(tmp_path):
    path = tmp_path / "a.jsonl"
    start(path, Reply("1", "a"))
    with pytest.raises(UserError, match="other settings: weights: 'abc' -> 'abd'; resume with the same"):
        open_log(path, SETTINGS | {"weights": "abd"}, 3, resume=True)


def test_an_unfinished_log_is_not_lost(tmp_path):
    path = tmp_path / "a.jsonl"
    start(path, Reply("1", "a"))
    with pytest.raises(UserError, match=r"1 of 3 answers of an evaluation that was stopped; pass --resume"):
        open_log(path, SETTINGS, 3, resume=False)
    open_log(path, SETTINGS | {"weights": "abd"}, 3, resume=False).close()  # of other weights: replaced
    assert read_log(path)[1] == {}
    path.unlink()
    start(path, Reply("1", "a"), count=1)
    start(path, Reply("2", "b"), count=1)  # the first was whole
    assert list(read_log(path)[1]) == ["2"]


@pytest.mark.parametrize(
    ("lines", "message"), [(["{}"], "damaged"), (['{"settings": {}}', "[1]"], "damaged"), (None, "twice")]
)
def test_a_damaged_log(tmp_path, lines, message):
    path = tmp_path / "a.jsonl"
    same = json.dumps(Reply("1", "a").to_dict())
    path.write_text("\n".join(lines or ['{"settings": {}}', same, same]) + "\n")
    with pytest.raises(UserError, match=message):
        read_log(path)


def answer(item):
    return {"red": "it is red", "yes": "Yes, yes"}.get(item.truth, "no idea")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(form, items):
    if form == "ours":
        return [{"settings": SETTINGS}, *({"id": i.id, "text": answer(i), "truncated": i.id == "0-is"} for i in items)]
    if form == "llava":
        return [{"question_id": i.id, "prompt": i.question, "text": answer(i), "model_id": "x"} for i in items]
    if form == "llava by image":
        asked = {i.id: f"{i.question} one word" for i in items}
        return [{"question_id": i.cluster, "prompt": asked[i.id], "text": answer(i)} for i in items]
    doc = [
        {"question": i.question, "question_id": i.id} if form == "lmms-eval" else {"question": i.question}
        for i in items
    ]
    return [{"doc_id": n, "doc": doc[n], "filtered_resps": [answer(i)]} for n, i in enumerate(items)]


@pytest.mark.parametrize("form", ["ours", "llava", "llava by image", "lmms-eval", "lmms-eval by place"])
def test_files_of_others_are_read_in_any_order(task, tmp_path, form):
    rows = rows_of(form, task.items)
    if form != "ours":
        rows.reverse()
    found = read_answers(write(tmp_path / "a.jsonl", rows), task)
    assert {name: reply.text for name, reply in found.items()} == {item.id: answer(item) for item in task.items}
    assert found["0-is"].truncated is (True if form == "ours" else None)


def test_a_result_is_such_a_file(task, tmp_path):
    replies = {item.id: Reply(item.id, answer(item)) for item in task.items}
    result = score_task(task, replies, model={}, generation={})
    (tmp_path / "r.json").write_text(json.dumps(result.to_dict({})))
    again = score_task(task, read_answers(tmp_path / "r.json", task), model={}, generation={})
    assert again.scores.numbers == result.scores.numbers and again.interval == result.interval


def test_what_does_not_fit_is_named(task, tmp_path):
    rows = rows_of("llava", task.items)
    mixed = [*rows[:-1], rows[0], {"question_id": "other", "prompt": "?", "text": ""}]
    with pytest.raises(UserError) as caught:
        read_answers(write(tmp_path / "a.jsonl", mixed), task)
    for part in (
        "rows of no question: 1 (other (row 25))",
        "questions with several rows: 1 (0-is)",
        f"questions without a row: 1 of 24 ({task.items[-1].id})",
    ):
        assert part in str(caught.value)
    shuffled = rows_of("lmms-eval by place", task.items[::-1])
    with pytest.raises(UserError, match="rows of no question: 24"):
        read_answers(write(tmp_path / "b.jsonl", shuffled), task)


def test_a_choice_of_questions_needs_only_their_rows(root, task, tmp_path):
    (sample,) = load_tasks(["tests.evaluation.colours.Colours"], root, limit=6)
    whole = write(tmp_path / "a.jsonl", rows_of("llava", task.items))
    assert {item.id for item in sample.items} <= read_answers(whole, sample).keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no list"),
        ("[1]\n", "holds no list"),
        ("{", "is not JSON"),
        ('{"question_id": 1}\n', r"row 1 is no answer; expected .*found the keys 'question_id'"),
        ('{"settings": {"benchmark": "pope"}}\n{"id": "1", "text": ""}\n', "has the answers to pope, not to colours"),
    ],
)
def test_other_files(task, tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_answers(path, task)


def test_a_missing_file(task, tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_answers(tmp_path / "no.jsonl", task)
