"""One's own file: forms, metrics, choices."""

import pytest

from jaxvlm.errors import UserError
from jaxvlm.evaluation.benchmarks.own import CHOICE, CONTAINS, EXACT, NORMALISED, OwnFile
from tests.evaluation.choice_files import assert_shuffling_changes_nothing
from tests.evaluation.layouts import put_images, put_json, put_lines

OWN = OwnFile()


def asked(id, question, answer, **more):
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": id, "image": "a.jpg", "conversations": turns, **more}


def load(folder, *rows):
    put_lines(folder / "test.jsonl", list(rows))
    put_images(folder, "a.jpg")
    return OWN.load(folder, "test")


def values(items, texts, dialect):
    return [OWN.parse(*pair, dialect) for pair in zip(items, texts, strict=True)]


def test_forms_and_places_of_the_file(tmp_path):
    first, second = load(tmp_path, asked("1", "What colour?", " Red "), asked("2", "What?", "a dog"))
    assert (first.id, first.question, first.truth) == ("1", "What colour?", "Red")
    assert OWN.prompt(first, EXACT) == "<image>\nWhat colour?" and first.images == (str(tmp_path / "a.jpg"),)
    assert first.cluster == second.cluster == str(tmp_path / "a.jpg")
    messages = [{"role": "user", "content": "Two plus two?"}, {"role": "assistant", "content": "4"}]
    put_json(tmp_path / "mine/anything.json", [{"messages": messages}])
    (item,) = OWN.load(tmp_path / "mine", "test")
    assert (item.question, item.truth, item.images) == ("Two plus two?", "4", ())
    assert OWN.load(tmp_path / "mine/anything.json", "test")[0].truth == "4"
    put_lines(tmp_path / "mine/val.jsonl", [{"messages": messages[:1] + [{"role": "assistant", "content": "5"}]}])
    assert OWN.load(tmp_path / "mine", "val")[0].truth == "5"


def test_missing_and_doubled_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"one file val.jsonl or val.json, found none"):
        OWN.load(tmp_path, "val")
    for name in ("a.json", "b.jsonl"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"one file test.jsonl or test.json, found a.json, b.jsonl"):
        OWN.load(tmp_path, "test")


def test_broken_records_and_doubled_ids_are_named(tmp_path):
    with pytest.raises(UserError, match="test.jsonl:1.*test.jsonl:2"):
        load(tmp_path, {"id": "1"}, {"id": "2", "conversations": 3})
    with pytest.raises(UserError, match="the same id: 1 "):
        load(tmp_path, asked("1", "What?", "a"), asked("1", "Who?", "b"))


def test_questions_that_follow_others_are_refused(tmp_path):
    row = asked("1", "What?", "a dog")
    row["conversations"] += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "yes"}]
    with pytest.raises(UserError, match="1 questions of .* follow earlier turns .*run evaluate with --data"):
        load(tmp_path, row)


def test_text_metrics(tmp_path):
    rows = [asked(str(n), "What?", truth) for n, truth in enumerate(("Red", "a dog", "3", "no"))]
    items = load(tmp_path, *rows)
    texts = ["Red\n", "The dog!", "It is 3.", "not"]
    expected = {EXACT: 25, NORMALISED: 50, CONTAINS: 75}
    for dialect in expected:
        scores = OWN.score(items, values(items, texts, dialect), dialect)
        assert scores.numbers == expected and next(iter(scores.numbers)) == dialect
        assert scores.credits.mean() == expected[dialect] / 100
        assert_shuffling_changes_nothing(OWN, items, values(items, texts, dialect), dialect)
        truths = values(items, [item.truth for item in items], dialect)
        assert set(OWN.score(items, truths, dialect).numbers.values()) == {100}
    assert set(OWN.score(items, [None] * 4, EXACT).numbers.values()) == {0}


@pytest.mark.parametrize(
    "question, answer",
    [
        ("Which?\nA. cat\nB. red bus\nC. dog", "B"),
        ("Which?\n(A) cat\n(B) red bus", "(B)"),
        ("Which? (A) cat (B) red bus", "Red bus."),
    ],
)
def test_options_in_the_question(tmp_path, question, answer):
    (item,) = load(tmp_path, asked("1", question, answer))
    assert item.choices[:2] == ("cat", "red bus") and item.extra["choice"] == "red bus"
    assert OWN.continuations(item, CHOICE)[:2] == ("A", "B")
    for text in ("B", "b.", "(B)", "B. red bus", "The answer is B.", "red bus", "It is a red bus."):
        assert OWN.parse(item, text, CHOICE) == "red bus", text
    assert OWN.parse(item, "A", CHOICE) == "cat" and OWN.parse(item, "a plane or so", CHOICE) is None
    assert OWN.score([item], ["red bus"], CHOICE).numbers == {"choice": 100}
    assert OWN.score([item], [None], CHOICE).numbers == {"choice": 0}


def test_reference_answers_are_the_choices_where_a_question_lists_none(tmp_path):
    items = load(tmp_path, asked("1", "Is it?", "yes"), asked("2", "Is it not?", "no"), asked("3", "Is that?", "yes"))
    assert all(OWN.continuations(item, CHOICE) == ("yes", "no") for item in items)
    assert values(items, ["Yes, it is.", "No", "yes and no"], CHOICE) == ["yes", "no", None]
    letters = load(tmp_path, asked("1", "See the picture.", "A"), asked("2", "And this?", "B"))
    assert values(letters, ["A.", "the answer is B"], CHOICE) == ["A", "B"]
    assert values(letters, ["", "The"], CHOICE) == [None, None]
    alike = load(tmp_path, asked("1", "Is it?", "yes"))
    assert OWN.continuations(alike[0], CHOICE) == ()
    with pytest.raises(UserError, match="1 questions list no options .*take another metric"):
        OWN.score(alike, ["yes"], CHOICE)


def test_a_list_that_does_not_include_the_answer_is_no_choice(tmp_path):
    (item,) = load(tmp_path, asked("1", "Count these:\nA. cat\nB. dog", "2"))
    assert item.choices == () and not item.extra["letters"]
