"""Parsers of choices and of open answers against the published scorers, and the metrics of one's own file."""

import pytest

from jaxvlm.evaluation.metrics.choices import (
    equal_letter,
    equal_text,
    first_character,
    last_letter_or_text,
    letter_with_full_stop,
    lettered,
    lone_letter_or_text,
    marked_letter_or_text,
    stated_letter,
)
from jaxvlm.evaluation.metrics.matching import contains, normalised
from jaxvlm.evaluation.metrics.open_answers import matches, open_candidates
from tests.evaluation.frozen import cases

PARSERS = {
    "llava_scienceqa": stated_letter,
    "llava_seedbench": equal_letter,
    "lmms_eval_scienceqa": letter_with_full_stop,
    "lmms_eval_seedbench": first_character,
    # MMBench has four options at most.
    "lmms_eval_mmbench": lambda text, options: marked_letter_or_text(text, dict(list(options.items())[:4])),
    "vlmevalkit": lone_letter_or_text,
    "mmmu": lambda text, options: last_letter_or_text(text, options, glued=False),
    "lmms_eval_mmmu": lambda text, options: last_letter_or_text(text, options, glued=True),
}


@pytest.mark.parametrize("parser", PARSERS)
def test_letters_are_those_of_the_published_parser(parser):
    rows = cases("choices_letters")
    found = [PARSERS[parser](row["text"], lettered(row["choices"])) for row in rows]
    wrong = [(row["text"], row["choices"], row.get(parser), letter) for row, letter in zip(rows, found, strict=True)]
    assert [case for case in wrong if case[2] != case[3]] == []
    assert sum(parser in row for row in rows) >= 15  # enough of them have a letter


@pytest.mark.parametrize("tool", ["right", "vlmevalkit"])
def test_open_answers_are_right_where_the_published_scorer_says_so(tool):
    rows = cases("choices_open")
    for row in rows:
        truths = row["truth"] if isinstance(row["truth"], list) else [row["truth"]]
        if tool == "right":
            right = matches(truths, open_candidates(row["text"]))
        else:
            right = lone_letter_or_text(row["text"], {"A": str(row["truth"]), "B": "Other Answers"}) == "A"
        assert right == row[tool], row
    assert 30 < sum(row[tool] for row in rows) < len(rows) - 30


@pytest.mark.parametrize(
    "text, letter",
    [
        ("B", "B"),
        ("The answer is (B).", "B"),
        ("it is a dog", "B"),
        ("A or B", None),
        ("I'm sorry, but without the image provided A", None),
        ("B " + "word " * 9, None),
        ("", None),
    ],
)
def test_vlmevalkit_finds_a_lone_letter_or_text(text, letter):
    assert lone_letter_or_text(text, {"A": "cat", "B": "dog"}) == letter


def test_a_word_that_ends_in_a_letter_is_a_choice_only_for_lmms_eval():
    options = lettered(["cat", "dog"])
    assert last_letter_or_text("DNA is there", options, glued=True) == "A"
    assert last_letter_or_text("DNA is there", options, glued=False) is None


def test_equal_text_takes_the_first_of_equal_options():
    assert equal_text(" red ", {"A": "blue", "B": "red", "C": "red"}) == "B"
    assert equal_text("Red", {"A": "red"}) is None


def test_normalised_texts():
    assert normalised("The  Answer, is: -1,500.5!") == "answer is -1500.5"
    assert normalised("(a) An apple\u3002") == "apple"
    assert normalised("The answer is A.") == "answer is a" and normalised("The") == "the"
    assert normalised("U.S.") == "u.s" and normalised("3.5%") == "3.5" and normalised("...") == ""
    assert contains("It is a RED bus.", "red bus") and not contains("redder", "red")
    assert not contains("red", "") and contains("", "")
